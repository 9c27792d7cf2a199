"""The command line: `serinette`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command; ends the process."""
    try:
        from serinette.cli.app import run  # noqa: PLC0415  # the package may be installed without its [cli] extra
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"the command line needs {error.name}: pip install 'serinette[cli]'")
    run()
