"""From submit to start and to the song's end, on `serinette up` with the bundled checkpoint on the CPU."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.record import Figures, spread
from serinette.client import Client
from serinette.job import Job
from serinette.spec import GenerationSpec
from tests.up import Up

STARTS = 20
SONGS = 7
SONG_S = 15.0


def measure() -> Figures:
    """One server, its worker idle and warm before every submit."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        began = time.perf_counter()
        up = Up.start(Path(directory) / "data")
        try:
            with Client(up.url) as client:
                up_s = time.perf_counter() - began
                first = _song(client, SONG_S)[0]  # the first call in a process is slower, and reported apart
                starts_ms = [_start_ms(client) for _ in range(STARTS)]
                songs = [_song(client, SONG_S) for _ in range(SONGS)]
            up.end()
        finally:
            up.clean_up()
    walls_s = [wall_s for wall_s, _ in songs]
    timings = [job.result.timings for _, job in songs if job.result]
    return {
        "duration_s": SONG_S,
        "up_s": round(up_s, 2),
        "submit_to_start_ms": spread(starts_ms, 1),
        "first_song_wall_s": round(first, 3),
        "wall_s": spread(walls_s),
        "sing_s": spread([timing.generate_s for timing in timings]),
        "encode_s": spread([timing.encode_s for timing in timings]),
        "real_time_factor": spread([wall_s / SONG_S for wall_s in walls_s]),
    }


def _start_ms(client: Client) -> float:
    """From the gateway's receipt of a submit to the start of its attempt, by the server's clock."""
    job = client.wait(client.submit(GenerationSpec(prompt="jazz", duration_s=1)).id)
    if job.result is None:
        raise RuntimeError(f"job {job.id} {job.status}: {job.error}")
    time.sleep(0.5)  # the slot is back in its lane
    return 1000 * job.result.timings.queue_s


def _song(client: Client, duration_s: float) -> tuple[float, Job]:
    """Seconds from a submit to its terminal event, as a client sees them, and the job."""
    began = time.perf_counter()
    job = client.submit(GenerationSpec(prompt="jazz piano, smooth", duration_s=duration_s))
    last = [event.type for event in client.events(job.id)][-1]
    wall_s = time.perf_counter() - began
    if last != "succeeded":
        raise RuntimeError(f"job {job.id} {last}")
    time.sleep(0.5)
    return wall_s, client.get(job.id)
