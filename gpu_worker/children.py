"""The supervisor's child processes: started, watched, signaled, reaped."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gpu_worker.restart import Life
from serinette.leash import leashed

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Child:
    """One child, through all its lives. `environment` is added to the supervisor's own.

    `command` is given a name of this life's own if there is a `name_prefix`, and behind it a pipe's descriptor if
    `reports_busy`.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    name_prefix: str | None = None
    reports_busy: bool = False
    life: Life = field(default_factory=Life)
    busy: bool = False
    exit_status: int | None = None
    life_name: str = ""
    _process: subprocess.Popen[bytes] | None = None
    _busy_fd: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it, leashed to this process, in a process group of its own: Ctrl-C is for the supervisor."""
        command = list(self.command)
        if self.name_prefix:
            # RQ refuses a name that a killed process has not ceased to hold.
            self.life_name = f"{self.name_prefix}.{secrets.token_hex(3)}"
            command += ["--name", self.life_name]
        passed: tuple[int, ...] = ()
        if self.reports_busy:
            self._busy_fd, far_end = os.pipe()
            os.set_blocking(self._busy_fd, False)
            command, passed = [*command, "--busy-fd", str(far_end)], (far_end,)
        try:
            self._process = subprocess.Popen(
                leashed(command),
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                process_group=0,
                pass_fds=passed,
            )
        finally:
            for descriptor in passed:
                os.close(descriptor)
        self.life = self.life.started(time.monotonic())
        log.info("%s started, process %d", self.name, self._process.pid)

    def look(self) -> bool:
        """Take in whether it is busy; True if it has just died."""
        if self._process is None:
            return False
        if self._busy_fd is not None:
            with suppress(BlockingIOError):
                while told := os.read(self._busy_fd, 64):
                    self.busy = told.endswith(b"1")
        if self._process.poll() is None:
            return False
        self.exit_status = self._process.returncode
        self._forget()
        self.life = self.life.died(time.monotonic())
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._process:
            self._process.send_signal(number)

    def end(self, timeout_s: float) -> None:
        """Ask it to end, kill it after `timeout_s`, and wait."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not end within %g s and is killed", self.name, timeout_s)
            self._process.kill()
            self._process.wait()
        self._forget()

    def how_it_ended(self) -> str:
        """Its last end, in words."""
        status = self.exit_status
        if status is None:
            return "has not ended"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def _forget(self) -> None:
        self._process = None
        self.busy = False
        if self._busy_fd is not None:
            os.close(self._busy_fd)
            self._busy_fd = None
