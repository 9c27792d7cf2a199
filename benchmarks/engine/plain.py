"""diffusers' own pipeline in a loop: what an engine has to be better than."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import AceStepPipeline

from benchmarks.engine.cases import Case
from benchmarks.engine.speed import spec_of, synchronize
from benchmarks.record import Figures
from gpu_worker.engine.checkpoints.locating import locate
from serinette.media import encode
from serinette.spec import AudioFormat


def measure(case: Case) -> list[Figures]:
    """The pipeline as its page shows it, one call after the other, an mp3 of each song: warm, SDPA, same steps."""
    settings = case.settings()
    dtype = torch.bfloat16 if case.device == "cuda" else torch.float32
    pipe = AceStepPipeline.from_pretrained(locate(settings).directory, dtype=dtype).to(case.device)
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for duration_s in case.backlog_durations_s:
        for batch in case.batches:
            song_s = _median_s(case, partial(_generate_plainly, pipe, duration_s, batch))
            rows.append({"duration_s": duration_s, "batch": batch, "songs_per_min": round(60 * batch / song_s, 1)})
            print("    plain", rows[-1], flush=True)
    return rows


def _generate_plainly(pipe: Any, duration_s: float, batch: int) -> None:  # noqa: ANN401  # diffusers ships no types
    specs = [spec_of(index, duration_s) for index in range(batch)]
    audios = pipe(
        prompt=[spec.prompt for spec in specs],
        lyrics=["[Instrumental]" for _ in specs],
        audio_duration=duration_s,
        generator=[torch.Generator().manual_seed(index) for index in range(batch)],
    ).audios
    for audio in audios:
        samples = torch.as_tensor(audio).float().cpu().numpy()
        encode(samples, pipe.sample_rate, AudioFormat.MP3)


def _median_s(case: Case, work: Callable[[], None]) -> float:
    work()
    taken_s: list[float] = []
    for _ in range(case.runs):
        began_s = time.perf_counter()
        work()
        synchronize()
        taken_s.append(time.perf_counter() - began_s)
    return statistics.median(taken_s)
