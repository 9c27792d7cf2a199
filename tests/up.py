"""`serinette up` as a person starts it, for tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.processes import below, eventually

CLI = (sys.executable, "-m", "serinette.cli")
# What a developer has set must not steer a test.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("SERINETTE_", "RQ_"))}
# An engine of sines in place of the bundled model, which takes seconds to load; wherever it is started.
SINES = {"SERINETTE_ENGINE_MODULE": "tests.engines", "PYTHONPATH": str(Path(__file__).parents[1])}


def run_cli(*arguments: str, timeout_s: float = 120, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command to its end, with neither terminal nor settings."""
    return subprocess.run(
        [*CLI, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
    )


@dataclass
class Up:
    """A running `serinette up`."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    log: Path

    @classmethod
    def start(
        cls,
        data_dir: Path,
        *options: str,
        command: Sequence[str] = ("up", "--port", "0"),
        environment: Mapping[str, str] | None = None,
    ) -> Up:
        """Start one on a free port; `url` waits for it."""
        log = data_dir.with_name(f"{data_dir.name}-{time.monotonic_ns()}.log")
        words = [*CLI, *command, "--data-dir", str(data_dir), *options]
        with log.open("wb") as output:
            process = subprocess.Popen(
                words,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**ENVIRONMENT, **(environment or {})},
                process_group=0,
            )
        return cls(process, data_dir, log)

    @property
    def output(self) -> str:
        """All that it has said."""
        return self.log.read_text()

    @property
    def url(self) -> str:
        """Where it listens, once everything is ready."""
        assert eventually(lambda: "Listening on" in self.output or self.process.poll() is not None, 240), self.output
        found = re.search(r"Listening on (\S+)", self.output)
        assert found, self.output
        return found[1]

    def family(self) -> list[psutil.Process]:
        """It and everything below it."""
        return below(self.process.pid)

    def child(self, word: str) -> psutil.Process:
        """The one process below that runs this program or module."""
        (found,) = (process for process in self.family()[1:] if word in _words(process))
        return found

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ask it to end; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def clean_up(self) -> None:
        """End it if the test did not; its leash takes the rest along."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _words(process: psutil.Process) -> set[str]:
    # Valkey writes its title over its command line.
    return {Path(word).name for word in " ".join(process.cmdline()).split()}
