"""A supervisor's children, as process 1 of a container holds them."""

from __future__ import annotations

import subprocess
import sys

# PR_SET_CHILD_SUBREAPER (prctl(2)) makes a process what process 1 is to its container.
CODE = """
import ctypes, os, subprocess, sys, time
from gpu_worker.children import Child, reap_orphans
assert ctypes.CDLL(None).prctl(36, 1) == 0
own = Child("own", (sys.executable, "-c", "import sys; sys.exit(3)"), {})
own.start()
subprocess.run(["sh", "-c", "sleep 0.1 & sleep 0.2 & exit 0"], check=True)
deadline = time.monotonic() + 20
died, left = False, {0}
while time.monotonic() < deadline and (left or not died):
    died = own.look() or died
    reap_orphans([own])
    left = {int(pid) for pid in open(f"/proc/self/task/{os.getpid()}/children").read().split()}
    time.sleep(0.05)
print(died, own.exit_status, left)
"""


def test_orphans_are_buried_and_its_own_keep_their_exit_status() -> None:
    told = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False, timeout=60)
    assert told.stdout == "True 3 set()\n", told.stderr
