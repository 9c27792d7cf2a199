"""Do the slots keep an engine busy? One of known speed, encoders that sleep, and everything between them real.

`python -m benchmarks.engine.feeding engine SONGS_PER_S` and `... slot ENCODE_S` are the processes that it starts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.record import Figures
from gpu_worker.engine.ace_step.sampling import TURBO
from gpu_worker.engine.interface import BatchProgress, Song, SongRequest, StepObserver
from gpu_worker.engine.serving.server import run
from gpu_worker.settings import WorkerSettings, sizing_for
from gpu_worker.slot import __main__ as slot
from gpu_worker.slot import encoding
from gpu_worker.wire import AskVitals, Connection, Vitals
from serinette.job import Stage
from serinette.leash import leashed
from tests import servers
from tests.engines import SAMPLE_RATE, SineEngine
from tests.pod import Pod, pod

_SONG_S = 1.0
_SECONDS = 30
_TIMEOUT_S = 300
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Feed:
    """An engine of so many songs a second in batches of `max_batch`, beside so many cores that encode."""

    songs_per_s: float
    max_batch: int
    encoders: int
    encode_s: float


# 1.3 s: an mp3 of a minute. At 16 songs a second of these, 21 cores would be at work: a pod of 16 is full with 0.9 s.
FEEDS = (Feed(2, 1, 4, 1.3), Feed(8, 8, 12, 1.3), Feed(16, 8, 16, 0.9))
# What the chart's pool of GPUs was before there was a rule: a slot is held while its song is encoded.
STARVED = Feed(5, 1, 4, 1.3)


class KnownSpeed(SineEngine):
    """Takes the same time for each song, whatever its company."""

    def __init__(self, songs_per_s: float, tokens: Path) -> None:
        super().__init__(tokens)
        self._song_s = 1 / songs_per_s

    def generate(self, batch: Sequence[SongRequest], observe: StepObserver) -> Iterator[tuple[int, Song]]:
        """Silence, in eight steps, and a fifth of the time for decoding."""
        progress, whole_s = BatchProgress(observe, len(batch)), self._song_s * len(batch)
        progress.report(Stage.CONDITIONING)
        for step in range(1, TURBO.steps + 1):
            time.sleep(0.8 * whole_s / TURBO.steps)
            progress.report(Stage.DENOISING, step, TURBO.steps)
        silence = np.zeros((2, round(_SONG_S * SAMPLE_RATE)), np.float32)
        for place, request in enumerate(batch):
            progress.report(Stage.DECODING)
            time.sleep(0.2 * self._song_s)
            yield place, Song(silence, SAMPLE_RATE, request.seed)


def measure() -> Figures:
    """Each feed's share of what the engine could do, under a backlog; one with too few slots, to see that it shows."""
    return {
        "seconds": _SECONDS,
        "feeds": [measured(feed, slots_of(feed), _SECONDS) for feed in FEEDS],
        "starved": measured(STARVED, 2, _SECONDS),
    }


def slots_of(feed: Feed) -> int:
    """As many as a pod of so many cores would have."""
    return sizing_for(gpu=True, cores=feed.encoders, max_batch=feed.max_batch).slots


def measured(feed: Feed, slots: int, seconds: float) -> Figures:
    """A pod of so many slots before an engine of that speed, with work for so many seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as place,
        servers.valkey(Path(place) / "valkey") as server,
        ExitStack() as processes,
    ):
        directory = Path(place) / "pod"
        directory.mkdir()
        settings = {
            "max_batch": feed.max_batch,
            "encoders": feed.encoders,
            "run_dir": directory,
            "heartbeat_s": 5,
            "heartbeat_ttl_s": 20,
        }
        with pod(directory, server.connection_url, settings) as made:
            _start(processes, made, "engine", feed.songs_per_s)
            for _ in range(slots):
                _start(processes, made, "slot", feed.encode_s)
            songs = round(seconds * feed.songs_per_s) + 2 * slots
            for number in range(songs):
                made.submit("silence", seed=number, duration_s=_SONG_S, timeout_s=3600)
            figures = _watched(made.settings.engine_socket, songs, slots, made, feed.songs_per_s)
    row = {**{name: getattr(feed, name) for name in Feed.__slots__}, "slots": slots, **figures}
    print("   ", row, flush=True)
    return row


def _start(processes: ExitStack, made: Pod, role: str, number: float) -> None:
    command = leashed([sys.executable, "-m", "benchmarks.engine.feeding", role, str(number)])
    log = processes.enter_context((made.directory / f"{role}.log").open("ab"))
    process = subprocess.Popen(command, env=made.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    processes.callback(process.wait)
    processes.callback(process.kill)


def _watched(socket: Path, songs: int, slots: int, made: Pod, songs_per_s: float) -> Figures:
    """From the time that every slot has had a job until none waits for one any more."""
    until_s = time.monotonic() + _TIMEOUT_S
    connection = None
    while connection is None:
        try:
            connection = Connection.connect(socket, 1.0)
        except OSError:
            _patiently(until_s, made)
    began: tuple[float, Vitals] | None = None
    while True:
        connection.send(AskVitals())
        message = connection.receive(1.0)
        if not isinstance(message, Vitals):
            continue
        done, at_s = message.audio_s / _SONG_S, time.monotonic()
        if began is None and done >= slots:
            began = at_s, message
        if began and done >= songs - slots:
            break
        _patiently(until_s, made)
    connection.close()
    wall_s, first = at_s - began[0], began[1]
    generated = (message.audio_s - first.audio_s) / _SONG_S
    return {
        "wall_s": round(wall_s, 2),
        "songs_per_s_generated": round(generated / wall_s, 2),
        # Of what the engine would have generated in that time, had it never waited for anything.
        "generated_to_nominal": round(generated / wall_s / songs_per_s, 3),
        "engine_busy_share": round((message.busy_s - first.busy_s) / wall_s, 3),
    }


def _patiently(until_s: float, made: Pod) -> None:
    if time.monotonic() > until_s:
        logs = "\n".join(path.read_text()[-2000:] for path in made.directory.glob("*.log"))
        raise RuntimeError(f"not done within {_TIMEOUT_S} s:\n{logs}")
    time.sleep(_LOOK_S)


def _be(role: str, number: float) -> int:
    if role == "engine":
        settings = WorkerSettings()
        return run(settings, lambda: KnownSpeed(number, settings.work_dir))

    def sleep(*_samples: object, **_options: object) -> bytes:
        time.sleep(number)
        return b"silence"

    vars(encoding)["encode"] = sleep
    sys.argv = ["slot"]
    return slot.main()


if __name__ == "__main__":
    sys.exit(_be(sys.argv[1], float(sys.argv[2])))
