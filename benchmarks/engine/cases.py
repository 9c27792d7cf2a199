"""What is measured where: the full-size model on a GPU, the bundled one on a CPU. The same code for both."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.engine.full_size import SIZES, build
from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.loading import load
from gpu_worker.process_setup import engine_environment
from gpu_worker.settings import WorkerSettings, sizing_for, usable_cores

# Where checkpoints lie between two runs.
BETWEEN_RUNS = Path(tempfile.gettempdir()) / "serinette-benchmarks"


@dataclass(frozen=True, slots=True)
class Case:
    """One model on one device, and how far it is taken."""

    model: str
    device: str
    durations_s: tuple[float, ...]
    batches: tuple[int, ...]
    backlog_durations_s: tuple[float, ...]
    backlog_songs: int
    # Slots and songs of a batch: one thing at a time, two that overlap, one batch that works and one that waits.
    backlog_ways: tuple[tuple[int, int], ...]
    compile: bool
    runs: int = 3
    directory: Path = BETWEEN_RUNS
    # A worker's metrics report what its engine said up to five seconds ago, which is much of a fast card's run.
    metrics_settle_s: float = 10
    first_song_s: float = 30.0
    # Seconds of a song and songs together, which two checkouts generate in turns.
    turns: tuple[tuple[float, int], ...] = ((5.0, 1), (15.0, 1), (15.0, 2), (60.0, 1))

    @property
    def device_name(self) -> str:
        """The device as its maker calls it."""
        return torch.cuda.get_device_name() if self.device == "cuda" else "cpu"

    def settings(self, **asked: object) -> WorkerSettings:
        """The worker's, for this case."""
        return WorkerSettings.model_validate(
            {
                "model": self.model,
                "model_name": "measured",
                "device": self.device,
                "work_dir": self.directory,
                "max_batch": max(self.batches),
                **asked,
            }
        )

    def engine(self, **asked: object) -> AceStepEngine:
        """The engine, for this case."""
        engine = load(self.settings(**asked))
        if not isinstance(engine, AceStepEngine):
            raise RuntimeError(f"{self.model} is no checkpoint of ACE-Step, which is what is measured")
        return engine


def as_engine(module: str, arguments: Sequence[str]) -> None:
    """Begin this process again as a worker's engine is begun: threads' and memory's settings are read then."""
    wanted = engine_environment(BETWEEN_RUNS)
    if not wanted.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", module, *arguments], {**wanted, **os.environ})


def let_go() -> None:
    """Give the device's memory back: who loads next plans with what is free, and sees what torch keeps as taken."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def on_gpu(size: str) -> Case:
    """The full-size model on CUDA. Raises RuntimeError without a device."""
    if not torch.cuda.is_available():
        raise RuntimeError("this benchmark needs a CUDA device; `make bench ARGS=engine` measures ratios on a CPU")
    directory = BETWEEN_RUNS / size
    return Case(
        model=str(build(directory, SIZES[size], "cuda")),
        device="cuda",
        durations_s=(10.0, 30.0, 60.0, 120.0, 240.0),
        batches=(1, 2, 4, 8, 16),
        backlog_durations_s=(30.0, 60.0),
        backlog_songs=96,
        backlog_ways=((1, 1), (2, 1), (sizing_for(gpu=True, cores=usable_cores()).slots, 8)),
        compile=True,
    )


def on_cpu() -> Case:
    """The bundled model on the CPU, as ratios."""
    return Case(
        model="bundled",
        device="cpu",
        durations_s=(5.0, 15.0),
        batches=(1, 2),
        backlog_durations_s=(10.0,),
        backlog_songs=8,
        backlog_ways=((1, 1), *((sizing_for(gpu=False, cores=1, max_batch=songs).slots, songs) for songs in (1, 2))),
        compile=False,
    )
