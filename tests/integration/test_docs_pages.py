"""What the pages for users show is run as it stands: Python and shell blocks, in their order, against real processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import Stack, running
from tests.up import ENVIRONMENT

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# As a person has it who installed us: one word.
_SHELL = f'set -euo pipefail\nserinette() {{ "{sys.executable}" -m serinette.cli "$@"; }}\n'


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page that are meant to be run; those called `text` are not."""
    return [code for kind, code in _BLOCK.findall((DOCS / page).read_text()) if kind == language]


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A whole Serinette whose engine sings sines."""
    with running(tmp_path_factory.mktemp("docs"), worker={"SERINETTE_ENGINE_MODULE": "tests.engines"}) as stack:
        yield stack


def run(command: list[str], fast: Stack, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **ENVIRONMENT,
        "URL": fast.url,
        "SERINETTE_URL": fast.url,
        "PYTHONPATH": os.pathsep.join([str(DOCS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=150,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("number", range(len(blocks("python.md", "python"))))
def test_a_python_block(fast: Stack, tmp_path: Path, number: int) -> None:
    code = blocks("python.md", "python")[number].replace("http://127.0.0.1:8019", fast.url)
    ended = run([sys.executable, "-c", code], fast, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert all(path.stat().st_size > 1_000 for path in tmp_path.rglob("*.mp3"))


@pytest.mark.parametrize("page", ["laptop.md", "rest.md"])
def test_the_shell_blocks_of_a_page(fast: Stack, tmp_path: Path, page: str) -> None:
    script = _SHELL + "\n".join(blocks(page, "bash"))
    ended = run(["bash", "-c", script], fast, tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "song.mp3").read_bytes()[:3] == b"ID3"
