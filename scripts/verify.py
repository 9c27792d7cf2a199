"""Run what takes too long for every change, and keep what came of it in docs/verification.md: `make verify`.

Before an issue is called resolved. A step whose tools are missing is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
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
    Step(
        "containers",
        (PYTHON, "-m", "pytest", "-q", "tests/chart/test_containers.py", "tests/chart/test_compose.py"),
        "podman",
    ),
    Step("roots", (PYTHON, "-m", "benchmarks", "roots"), "mmdebstrap"),
    Step("cluster", (PYTHON, "-m", "pytest", "-q", "tests/cluster"), "kubectl"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step: its exit status (None: left out), its last line, and how long it took."""

    step: Step
    status: int | None
    said: str
    seconds: float = 0.0

    def row(self, at: datetime, revision: str) -> str:
        """For the page."""
        word = "not run" if self.status is None else "passed" if self.status == 0 else f"FAILED ({self.status})"
        command = " ".join(("python", *self.step.command[1:]))
        said, when = self.said.replace("|", "/"), f"{at:%Y-%m-%d %H:%M}, {revision[:12]}"
        return f"| {self.step.name} | {word} | {self.seconds:.0f} s | {when} | {said} | `{command}` |"


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


def page(rows: Mapping[str, str]) -> str:
    """The page, from a row for each step."""
    cpu = machine()
    table = "\n".join(rows.get(step.name, f"| {step.name} | not run | | | | |") for step in STEPS)
    return f"""# What `make verify` found

Written by `make verify`: what takes too long for every change. Its whole output was in `{LOG}`. A run of some steps
alone replaces their rows; each names its time (UTC) and commit.

{cpu["cores"]} cores of {cpu["cpu"]}, {cpu["memory_gib"]} GiB.

| step | outcome | took | when | last line | command |
|---|---|---|---|---|---|
{table}
"""


def rows_of(text: str) -> dict[str, str]:
    """Rows of an earlier page, by step."""
    rows = (line for line in text.splitlines() if line.startswith("| "))
    return {row.split("|")[1].strip(): row for row in rows}


def main() -> int:
    """Run all steps, or those whose names hold a given word; exit status 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help=f"of {', '.join(step.name for step in STEPS)}; none: all")
    words = parser.parse_args().words
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    outcomes, rows = [], rows_of(PAGE.read_text())
    for step in STEPS:
        if not words or any(word in step.name for word in words):
            print(f"{step.name}...", flush=True)
            at, revision = datetime.now(UTC), commit()
            outcomes.append(run(step))
            rows[step.name] = outcomes[-1].row(at, revision)
            print(f"  {rows[step.name]}", flush=True)
            PAGE.write_text(page(rows))
    return 1 if any(outcome.status for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
