"""The engine by length and batch, and its share of the card's floor."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch

from benchmarks.engine import floor
from benchmarks.engine.cases import Case, let_go
from benchmarks.record import Figures
from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.interface import SongRequest
from serinette.job import Stage
from serinette.spec import GenerationSpec

PROMPTS = ("jazz piano, smooth", "lofi hip hop with a warm bass and vinyl noise", "trap", "a slow ballad for strings")
_MIB = 2**20


@dataclass
class Clock:
    """An observer that notes when denoising and decoding begin, with the device's work done by then."""

    at: dict[Stage, float] = field(default_factory=dict)

    def __call__(self, stage: Stage, step: int | None, steps: int | None) -> frozenset[int]:
        """Note the first sight of a stage."""
        if stage not in self.at:
            synchronize()
            self.at[stage] = time.perf_counter()
        return frozenset()


def measure(case: Case) -> Figures:
    """Every length and batch, eager and, on a GPU, compiled."""
    eager = case.engine(compile=False)
    figures: Figures = {
        "device": eager.device,
        "steps": eager.model.default_steps,
        "eager": _sweep(case, eager),
    }
    del eager
    let_go()
    if case.compile:
        figures["compiled"] = _sweep(case, case.engine(compile=True))
    shares = [row["denoiser_share_of_floor"] for row in figures.get("compiled", []) if "denoiser_share_of_floor" in row]
    return figures | ({"best_denoiser_share_of_floor": max(shares)} if shares else {})


def _sweep(case: Case, engine: AceStepEngine) -> list[Figures]:
    rows = []
    for duration_s in case.durations_s:
        for batch in case.batches:
            if batch * duration_s <= 960.0 and batch <= engine.songs_together(duration_s):
                rows.append(_row(case, engine, duration_s, batch))
                print("   ", rows[-1], flush=True)
    return rows


def _row(case: Case, engine: AceStepEngine, duration_s: float, batch: int) -> Figures:
    requests = [SongRequest(spec_of(index, duration_s), index) for index in range(batch)]
    engine.generate_all(requests, Clock())
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    denoise_s, decode_s, sing_s = [], [], []
    for _ in range(case.runs):
        clock = Clock()
        began_s = time.perf_counter()
        engine.generate_all(requests, clock)
        synchronize()
        ended_s = time.perf_counter()
        denoise_s.append(clock.at[Stage.DECODING] - clock.at[Stage.CONDITIONING])
        decode_s.append(ended_s - clock.at[Stage.DECODING])
        sing_s.append(ended_s - began_s)
    typical_s = statistics.median(sing_s)
    row = {
        "duration_s": duration_s,
        "batch": batch,
        "sing_s": round(typical_s, 4),
        "denoise_s": round(statistics.median(denoise_s), 4),
        "decode_s": round(statistics.median(decode_s), 4),
        "songs_per_min": round(60 * batch / typical_s, 1),
        "real_time_factor": round(typical_s / (batch * duration_s), 5),
    }
    return row | _of_the_card(engine, row)


def _of_the_card(engine: AceStepEngine, row: Figures) -> Figures:
    if not torch.cuda.is_available():
        return {}
    row_of_card: Figures = {"peak_mib": torch.cuda.max_memory_allocated() // _MIB}
    peaks = floor.card(torch.cuda.get_device_name())
    transformer = engine._pipe.transformer
    if peaks is None:
        return row_of_card
    batch = floor.Batch(row["batch"], row["duration_s"], engine.model.default_steps)
    weights = sum(weight.numel() for weight in transformer.parameters())
    denoise_s = floor.denoise_floor_s(transformer.config, weights, peaks, batch)
    decode_s = floor.decode_floor_s(peaks, batch)
    return row_of_card | {
        "denoiser_share_of_floor": round(denoise_s / row["denoise_s"], 3),
        "share_of_floor": round((denoise_s + decode_s) / row["sing_s"], 3),
    }


def spec_of(index: int, duration_s: float) -> GenerationSpec:
    """The songs that are measured: prompts of several lengths."""
    return GenerationSpec(prompt=PROMPTS[index % len(PROMPTS)], duration_s=duration_s, seed=index)


def synchronize() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
