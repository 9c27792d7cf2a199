"""`serinette convert`: a checkpoint in ACE-Step's own layout, made into one that a worker loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from serinette.cli.serve import require_server

_MODULE = "gpu_worker.engine.conversion"


def convert(
    source: Annotated[
        Path, typer.Argument(help="Directory of the checkpoint, or of ACE-Step's main repository.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="New directory for what is made of it.", show_default=False)],
    variant: Annotated[
        str | None, typer.Option(help="Which checkpoint of a repository that holds several, e.g. acestep-v15-turbo.")
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option(help="ACE-Step's main repository, for a checkpoint that comes without `vae` and text encoder."),
    ] = None,
) -> None:
    """Convert a checkpoint from ACE-Step's own layout to the one that workers load.

    Download first: `hf download ACE-Step/Ace-Step1.5 --local-dir DIR`.
    """
    require_server("converting a checkpoint")
    options = [*(("--variant", variant) if variant else ()), *(("--parts", str(parts)) if parts else ())]
    command = [sys.executable, "-m", _MODULE, str(source), str(out), *options]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
