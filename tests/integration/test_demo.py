"""`serinette demo`, which is `make demo` once everything is installed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from serinette.media import probe
from tests.processes import below, eventually, eventually_gone
from tests.up import CLI, ENVIRONMENT, SINES

COLUMNS = 80


class Terminal:
    """A pseudo-terminal whose other end remembers everything that was written."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.written = b""
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 65_536):
                self.written += data
        except OSError:  # the last one that held it has gone
            pass

    def text(self) -> str:
        """What was written, without colors and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written.decode(errors="replace"))

    def close(self) -> str:
        """The text, once the writers have closed it."""
        os.close(self.theirs)
        self._reader.join(timeout=10)
        os.close(self._ours)
        return self.text()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        yield Path(directory)


def start(data_dir: Path, cwd: Path, terminal: Terminal, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*CLI, "demo", "--port", "0", "--data-dir", str(data_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal.theirs,
        text=True,
        cwd=cwd,
        env={**ENVIRONMENT, **environment, "TERM": "xterm-256color"},
    )


def test_a_song_from_one_command(data_dir: Path, tmp_path: Path) -> None:
    terminal = Terminal()
    with start(data_dir, tmp_path, terminal) as demo:
        assert eventually(lambda: len(below(demo.pid)) >= 8, 120), terminal.text()
        family = below(demo.pid)
        output, _ = demo.communicate(timeout=240)
    shown = terminal.close()
    assert demo.returncode == 0, shown
    assert output == f"{tmp_path / 'demo.mp3'}\n"
    song = probe(tmp_path / "demo.mp3", max_duration_s=60)
    assert song.duration_s == pytest.approx(15, abs=0.2)
    said = (
        *("dance music box with drums", "━", "succeeded", "15.0 s of mp3", "to generate", "in all"),
        *("not ACE-Step's music", "docs/models.md", "serinette", " up"),
    )
    for words in said:
        assert words in shown
    assert "does not know" not in shown
    assert max(len(line) for line in re.split(r"[\r\n]+", shown)) <= COLUMNS
    assert eventually_gone(family)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_cut_short_it_leaves_no_process(data_dir: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    terminal = Terminal()
    with start(data_dir, tmp_path, terminal, **SINES, SERINETTE_MODEL="slow 60") as demo:
        assert eventually(lambda: len(below(demo.pid)) >= 8, 120), terminal.text()
        family = below(demo.pid)
        demo.send_signal(number)
        demo.communicate(timeout=60)
    terminal.close()
    assert demo.returncode == status
    assert eventually_gone(family)
    assert not (tmp_path / "demo.mp3").exists()
