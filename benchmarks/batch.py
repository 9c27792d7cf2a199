"""A batch of 20,000 lines: what it takes of memory, what others wait meanwhile, what deaths on the way cost.

Slots are quick ones of the tests' that write all that slots write and generate nothing; Valkey, gateway and controller
are as they are run. The gateway is killed (-9) at a half of the lines, the controller at three quarters.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.record import Figures, spread
from tests.load.long_batch import SLOTS, assert_whole, long_batch, median_ms

LINES, SONG_S, OTHERS = 20_000, 0.05, 12
# Shares of the batch at which it is paused, to measure what others wait without it.
ASIDES = (0.1, 0.3, 0.45, 0.6, 0.7, 0.9)


def measure() -> Figures:
    """One batch from its request to its files."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        run = long_batch(Path(directory), LINES, SONG_S, OTHERS, ASIDES)
    assert_whole(run)
    figures: Figures = {
        "lines": LINES,
        "song_s": SONG_S,
        "slots": SLOTS,
        "seconds": round(run.seconds, 1),
        "lines_per_s": round(LINES / run.seconds, 1),
        "lines_lost": LINES - len(run.output) - len(run.errors),
        "lines_begun_twice": sum(count > 1 for count in run.begun.values()),
        "interactive_wait_ms": {
            "idle": spread([wait * 1_000 for wait in run.waits_idle_s], 1),
            "busy": spread([wait * 1_000 for wait in run.waits_busy_s], 1),
            "batch": spread([wait * 1_000 for wait in run.waits_batch_s], 1),
        },
        "interactive_wait_batch_to_busy": round(median_ms(run.waits_batch_s) / median_ms(run.waits_busy_s), 3),
        "waiting_lines": spread([sample["waiting"] for sample in run.samples if sample["fraction"] < 0.95], 0),
        # However busy the machine is: what the controller computes for a line bounds how many a second it can release.
        "controller_cpu_ms_per_line": round(run.cpu_ms_per_line("controller", 0.1, 0.7), 2),
    }
    for name in ("gateway_mib", "controller_mib", "redis_mib", "redis_kib_per_key"):
        early, late = run.during(name, 0.1, 0.45), run.during(name, 0.8, 1.0)
        figures[name] = {"early": round(early, 1), "late": round(late, 1), "late_to_early": round(late / early, 3)}
        figures[name]["median"] = round(statistics.median(sample[name] for sample in run.samples), 1)
    return figures
