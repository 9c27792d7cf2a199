"""A fast engine in the real engine process: `python -m tests.engines` generates sines and misbehaves on request.

Words of the prompt make it misbehave; the rest of the prompt is ignored.

    slow SECONDS      take that long, in eight steps, and heed a cancel at each
    hang              never come back, whatever is asked
    crash             die by SIGKILL
    crash once TOKEN  die the first time that TOKEN is asked for in this work_dir, also across restarts
    until TOKEN       go on until a test makes the file `tokens/TOKEN` in its work_dir
    then TOKEN        hand the first song of a batch over, and go on once a test makes the file `tokens/TOKEN`
    room for N        fail as a full device when more than N are generated together
    oom, nan, bug     fail as a full device, a broken model, a mistake of ours

`SERINETTE_MODEL` makes loading misbehave: `slow SECONDS`, `unloadable`, `roomless`.
"""

from __future__ import annotations

import errno
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gpu_worker.engine.ace_step.sampling import TURBO, fill_in
from gpu_worker.engine.interface import BatchProgress, Song, SongRequest, StepObserver
from gpu_worker.engine.serving.server import run
from gpu_worker.settings import WorkerSettings
from gpu_worker.wire import Samples
from serinette.errors import ConfigurationError, EngineOutOfMemory, InvalidOutput, Unsupported
from serinette.job import Sampling, Stage
from serinette.presence import Model
from serinette.spec import GenerationSpec, Task

SAMPLE_RATE = 48_000
QUICK_S = 0.05
MODEL = Model(
    name="sine",
    revision="0" * 64,
    turbo=True,
    sample_rate=SAMPLE_RATE,
    channels=2,
    default_steps=TURBO.steps,
    default_guidance_scale=TURBO.guidance_scale,
    default_shift=TURBO.shift,
    max_duration_s=600,
    tasks=tuple(Task),
)


class SineEngine:
    """Generates one sine per seed."""

    load_times: Mapping[str, float] = {"weights_s": 0.25}

    def __init__(self, tokens: Path) -> None:
        self._tokens = tokens

    @property
    def model(self) -> Model:
        return MODEL

    @property
    def device(self) -> str:
        return "an imagined one"

    def songs_together(self, longest_s: float) -> float:
        return math.inf

    def sampling(self, spec: GenerationSpec) -> tuple[Sampling, tuple[str, ...]]:
        if spec.lora is not None:
            raise Unsupported("lora: a sine has none", field="lora")
        return fill_in(spec, turbo=True)

    def duration_s(self, request: SongRequest) -> float:
        return request.spec.duration_s if request.source is None else request.source.shape[1] / SAMPLE_RATE

    def generate(self, batch: Sequence[SongRequest], observe: StepObserver) -> Iterator[tuple[int, Song]]:
        progress = BatchProgress(observe, len(batch))
        progress.report(Stage.CONDITIONING)
        prompts = " ".join(request.spec.prompt for request in batch)
        self._misbehave(prompts)
        until = re.search(r"\buntil (\w+)", prompts)
        while until and not (self._tokens / until[1]).exists():
            time.sleep(QUICK_S)
            progress.repeat()
        room = re.search(r"\broom for (\d+)", prompts)
        if room and len(batch) > int(room[1]):
            raise EngineOutOfMemory(f"{len(batch)} songs do not fit into an imagined memory for {room[1]}")
        steps = self.sampling(batch[0].spec)[0].steps
        slow = re.search(r"\bslow (\d+(\.\d+)?)", prompts)
        for step in range(1, steps + 1):
            time.sleep((float(slow[1]) if slow else QUICK_S) / steps)
            progress.report(Stage.DENOISING, step, steps)
        then = re.search(r"\bthen (\w+)", prompts)
        for place, request in enumerate(batch):
            while place and then and not (self._tokens / then[1]).exists():
                time.sleep(QUICK_S)
            progress.report(Stage.DECODING)
            if place not in progress.given_up:
                yield place, sine(request)

    def _misbehave(self, prompts: str) -> None:
        while re.search(r"\bhang\b", prompts):
            time.sleep(60)
        once = re.search(r"\bcrash once (\w+)", prompts)
        if once and not (self._tokens / once[1]).exists():
            self._tokens.mkdir(parents=True, exist_ok=True)
            (self._tokens / once[1]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if re.search(r"\bcrash\b", prompts) and not once:
            os.kill(os.getpid(), signal.SIGKILL)
        if re.search(r"\boom\b", prompts):
            raise EngineOutOfMemory("the song does not fit into an imagined memory of 0 bytes")
        if re.search(r"\bnan\b", prompts):
            raise InvalidOutput("the model produced samples that are not finite")
        if re.search(r"\bbug\b", prompts):
            raise ZeroDivisionError("a mistake of ours")


def sine(request: SongRequest) -> Song:
    """Half full scale, its pitch from the seed; on a source, as long as the source."""
    frames = round(request.spec.duration_s * SAMPLE_RATE) if request.source is None else request.source.shape[1]
    hertz = 110.0 * 2 ** (request.seed % 36 / 12)
    tone = 0.5 * np.sin(2 * np.pi * hertz / SAMPLE_RATE * np.arange(frames))
    samples: Samples = np.stack([tone, tone]).astype(np.float32)
    return Song(samples, SAMPLE_RATE, request.seed)


def load(settings: WorkerSettings) -> SineEngine:
    """Make the engine, as slowly as `SERINETTE_MODEL` says."""
    if settings.model == "unloadable":
        raise ConfigurationError("model unloadable: cannot be loaded, as asked")
    if settings.model == "roomless":
        raise ConfigurationError("model roomless: there is no room for it") from OSError(errno.ENOSPC, "no room")
    if slow := re.fullmatch(r"slow ([\d.]+)", settings.model):
        time.sleep(float(slow[1]))
    return SineEngine(settings.work_dir / "tokens")


def main() -> int:
    settings = WorkerSettings()
    return run(settings, partial(load, settings))


if __name__ == "__main__":
    sys.exit(main())
