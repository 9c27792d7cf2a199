"""`make chaos N=500 SEED=1`: one run with default settings; exit status 1 if a job was lost, stuck or doubled."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from benchmarks.record import write
from tests.chaos.cluster import Shape
from tests.chaos.plan import Part, Scale, plan
from tests.chaos.run import Run

# For 500 jobs; fewer jobs have fewer kills, each part one at least.
KILLS = {
    Part.GATEWAY: 6,
    Part.SUPERVISOR: 5,
    Part.SLOT: 8,
    Part.ENGINE: 6,
    Part.CONTROLLER: 5,
    Part.VALKEY: 6,
    Part.STORE: 3,
    Part.FULL_VALKEY: 3,
    Part.FULL_STORE: 3,
}
FORGETS = 3


def scale_of(count: int, outage_s: float) -> Scale:
    """As many kills as `count` jobs have room for."""
    kills = {part: max(1, round(number * count / 500)) for part, number in KILLS.items()}
    kills[Part.VALKEY] = max(2, kills[Part.VALKEY])
    return Scale(kills=kills, forgets=max(1, round(FORGETS * count / 500)), outage_s=outage_s, slow_s=2.0)


def main() -> int:
    """Run, report, and write the raw result."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--outage-s", type=float, default=150.0, help="how long the store is away")
    parser.add_argument("--fsync", action="store_true", help="durability: fsync; then no 202 may be forgotten")
    parser.add_argument("--keep", type=Path, help="an empty directory for logs and data; deleted when left out")
    arguments = parser.parse_args()
    scale = scale_of(arguments.jobs, arguments.outage_s)
    shape = Shape(fsync=arguments.fsync)
    planned = plan(arguments.seed, arguments.jobs, scale)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        directory = arguments.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(Run(planned, scale, shape, arguments.seed, patience_s=300).carry_out(directory))
    raw = {
        "seed": arguments.seed,
        "jobs": arguments.jobs,
        "outage_s": arguments.outage_s,
        "fsync": shape.fsync,
        **report.raw(),
    }
    how = f"N={arguments.jobs} SEED={arguments.seed}" + (" ARGS=--fsync" if shape.fsync else "")
    name = "chaos" + (f"-seed-{arguments.seed}" if arguments.seed != 1 else "") + ("-fsync" if shape.fsync else "")
    path = write(name, raw, command=f"make chaos {how}")
    print(f"raw result: {path}")
    print("\n".join(report.lines()), flush=True)
    return 0 if report.clean else 1


if __name__ == "__main__":
    sys.exit(main())
