"""Run what takes too long for every change, and keep what came of it in docs/verification.md: `make verify`.

Before an issue is called resolved. A step whose tools are missing is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.record import commit, machine

PAGE = Path("docs/verification.md")
LOG = Path("build/verify.log")
PYTHON = sys.executable


@dataclass(frozen=True, slots=True)
class Step:
    """One command. `needs`: a program that it does nothing without."""

    name: str
    command: tuple[str, ...]
    needs: str | None = None


STEPS = (
    Step("long tests", (PYTHON, "-m", "pytest", "-q", "-m", "load")),
    *(
        Step(f"chaos, seed {seed}", (PYTHON, "-m", "tests.chaos", "--jobs", "500", "--seed", str(seed)))
        for seed in (1, 2, 3)
    ),
    Step("peers", (PYTHON, "-m", "benchmarks", "peers")),
    Step("depth", (PYTHON, "-m", "benchmarks", "depth")),
    Step("recovery", (PYTHON, "-m", "benchmarks", "recovery")),
    Step("100,000 jobs forgotten", (PYTHON, "-m", "benchmarks", "forgetting")),
    Step("browser", (PYTHON, "-m", "pytest", "-q", "tests/browser"), "chromium"),
    Step("containers", (PYTHON, "-m", "pytest", "-q", "tests/chart/test_containers.py"), "podman"),
    Step("cluster", (PYTHON, "-m", "pytest", "-q", "tests/cluster"), "kubectl"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step: its exit status (None: left out), its last line, and how long it took."""

    step: Step
    status: int | None
    said: str
    seconds: float = 0.0

    def row(self) -> str:
        """For the page."""
        word = "not run" if self.status is None else "passed" if self.status == 0 else f"FAILED ({self.status})"
        command = " ".join(("python", *self.step.command[1:]))
        return f"| {self.step.name} | {word} | {self.seconds:.0f} s | {self.said.replace('|', '/')} | `{command}` |"


def run(step: Step) -> Outcome:
    """Run one step; its output goes to LOG."""
    if step.needs and shutil.which(step.needs) is None:
        return Outcome(step, None, f"{step.needs} is not installed")
    began = time.monotonic()
    with LOG.open("a") as log:
        log.write(f"== {step.name}: {' '.join(step.command)}\n")
        log.flush()
        done = subprocess.run(step.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        log.write(done.stdout)
    lines = [line.strip("= ") for line in done.stdout.splitlines() if line.strip("= ")]
    return Outcome(step, done.returncode, lines[-1] if lines else "", time.monotonic() - began)


def page(outcomes: Sequence[Outcome], at: datetime) -> str:
    """The page of one run."""
    cpu = machine()
    rows = "\n".join(outcome.row() for outcome in outcomes)
    return f"""# What `make verify` found

Written by `make verify`: what takes too long for every change. Its whole output was in `{LOG}`.

{at:%Y-%m-%d %H:%M} UTC, commit {commit()[:12]}, {cpu["cores"]} cores of {cpu["cpu"]}, {cpu["memory_gib"]} GiB.

| step | outcome | took | last line | command |
|---|---|---|---|---|
{rows}
"""


def main() -> int:
    """Run all steps, or those whose names hold a given word; exit status 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help=f"of {', '.join(step.name for step in STEPS)}; none: all")
    words = parser.parse_args().words
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    at, outcomes = datetime.now(UTC), []
    for step in STEPS:
        if not words or any(word in step.name for word in words):
            print(f"{step.name}...", flush=True)
            outcomes.append(run(step))
            print(f"  {outcomes[-1].row()}", flush=True)
    PAGE.write_text(page(outcomes, at))
    return 1 if any(outcome.status for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
