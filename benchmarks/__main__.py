"""`python -m benchmarks [name...]`: measure, write raw results, and put their figures into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    batch,
    client_import,
    demo,
    depth,
    fleet,
    forgetting,
    gateway_import,
    gateway_load,
    interference,
    page,
    planned_songs,
    recovery,
    roots,
    soak,
    songs,
    start_latency,
)
from benchmarks.engine import backlog, cold_start, feeding, speed, turns
from benchmarks.engine.cases import Case, as_engine, on_cpu, on_gpu
from benchmarks.peers import throughput
from benchmarks.record import Figures, write

BENCHMARKS = {
    "gateway-import": gateway_import.measure,
    "client-import": client_import.measure,
    "gateway-load": gateway_load.measure,
    "songs": songs.measure,
    "demo": demo.measure,
}
# Only by name: it takes long.
LONG = {
    "batch": batch.measure,
    "feeding": feeding.measure,
    "forgetting": forgetting.measure,
    "recovery": recovery.measure,
    "roots": roots.measure,
}
# Likewise, and they generate in this process.
ENGINE = {
    "gpu-cold-start": lambda: cold_start.measure(on_gpu("turbo")),
    "gpu-engine": lambda: speed.measure(on_gpu("turbo")),
    "gpu-engine-xl": lambda: speed.measure(on_gpu("xl")),
    "gpu-backlog": lambda: backlog.measure(on_gpu("turbo")),
}
# Likewise, and they take options: see `python -m benchmarks --help`.
WITH_OPTIONS: dict[str, tuple[Callable[..., Figures], tuple[str, ...]]] = {
    "peers": (throughput.measure, ("rounds", "round_s", "appendfsync")),
    "depth": (depth.measure, ("rounds", "jobs", "ended_after_s", "appendfsync")),
    "fleet": (fleet.measure, ("workers", "jobs", "round_s", "appendfsync")),
    "planned-songs": (planned_songs.measure, ("rounds",)),
    "interference": (interference.measure, ("rounds", "round_s")),
    "soak": (soak.measure, ("songs",)),
    "start-latency": (start_latency.measure, ("rounds", "other")),
    "engine": (lambda **given: engine_figures(on_cpu(), **given), ("rounds", "other")),
}


def engine_figures(case: Case, other: Path | None = None, rounds: int = 7) -> Figures:
    """All of the engine's benchmarks in one run: a CPU takes minutes for them."""
    return {
        **({"turns": turns.measure(case, other, rounds)} if other else {}),
        "speed": speed.measure(case),
        "backlog": backlog.measure(case),
        "cold_start": cold_start.measure(case),
    }


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line; an option that is not given is not in it."""
    known = [*BENCHMARKS, *LONG, *ENGINE, *WITH_OPTIONS]
    parser = argparse.ArgumentParser("python -m benchmarks", argument_default=argparse.SUPPRESS, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(known)}; none: the short ones")
    parser.add_argument(
        "--rounds",
        type=int,
        help="peers, depth, interference, planned-songs, start-latency, engine: how often each has its turn",
    )
    parser.add_argument("--round-s", type=float, help="peers, fleet, interference: seconds of a turn")
    parser.add_argument("--appendfsync", choices=("always", "everysec"), help="peers, depth, fleet: of Valkey")
    parser.add_argument("--jobs", type=int, help="depth, fleet: how many wait")
    parser.add_argument("--songs", type=int, help="soak: how many")
    parser.add_argument("--workers", type=int, help="fleet: how many are simulated")
    parser.add_argument("--ended-after-s", type=float, help="depth: measure an ended job again after so long")
    parser.add_argument("--other", type=Path, help="start-latency, engine: a checkout that takes turns with this one")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no benchmark {', '.join(unknown)}: there are {', '.join(known)}")
    return options


def figures_of(name: str, options: argparse.Namespace) -> tuple[Figures, str]:
    """Measure; also the command that does so again, without the place of another checkout."""
    measures = BENCHMARKS | LONG | ENGINE
    if name in measures:
        return measures[name](), f"python -m benchmarks {name}"
    measure, takes = WITH_OPTIONS[name]
    given = {option: value for option, value in vars(options).items() if option in takes}
    words = [
        f"--{option.replace('_', '-')} {'CHECKOUT' if option == 'other' else value}" for option, value in given.items()
    ]
    return measure(**given), " ".join(["python -m benchmarks", name, *words])


def main(arguments: list[str]) -> int:
    """Run the named benchmarks, or all but the long ones."""
    options = parsed(arguments)
    if any(name in {*ENGINE, "engine"} for name in options.names):
        as_engine("benchmarks", arguments)
    for name in options.names or BENCHMARKS:
        print(f"{name}...", flush=True)
        figures, command = figures_of(name, options)
        print(f"  {write(name, figures, command)}", flush=True)
    page.update()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
