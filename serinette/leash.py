"""Processes that die with their parent, also when the parent is killed outright (`kill -9`).

A process is started by `Popen(leashed(command))`. On Linux the kernel kills it (PR_SET_PDEATHSIG, see prctl(2)): this
is set before `command` is executed, so that the process id is the command's own, and works even if the process hangs.
On other systems a small process between the two watches the parent.

The kernel watches the *thread* that started the child: start children from a thread that lives as long as they should.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_S = 0.2


def leashed(command: Sequence[str]) -> list[str]:
    """The command to start, so that `command` runs and dies with the calling process."""
    return [sys.executable, "-m", "serinette.leash", str(os.getpid()), "--", *command]


def _die_with_parent(parent_pid: int) -> None:
    """Linux: kill the calling process when its parent ends, or now if it has ended before this call."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def run_watched(parent_pid: int, command: Sequence[str]) -> int:
    """Run `command` as a child, forward signals, kill it when the parent has ended; returns its exit status."""
    child = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: child.send_signal(received))
    while True:
        try:
            status = child.wait(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent_pid:
                child.kill()
        else:
            return status if status >= 0 else 128 - status


def main(arguments: Sequence[str]) -> int:
    """`python -m serinette.leash PARENT_PID -- COMMAND...`; on Linux it does not return but executes the command."""
    match arguments:
        case [pid, "--", program, *rest] if pid.isdecimal():
            parent_pid = int(pid)
        case _:
            sys.stderr.write("usage: python -m serinette.leash PARENT_PID -- COMMAND [ARGUMENT...]\n")
            return 2
    if sys.platform != "linux":
        return run_watched(parent_pid, [program, *rest])
    _die_with_parent(parent_pid)
    try:
        os.execvp(program, [program, *rest])
    except OSError as error:
        sys.stderr.write(f"cannot run {program}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
