"""What the engine server asks of a model, and what it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpu_worker.wire import Samples
from serinette.job import Sampling, Stage
from serinette.presence import Model
from serinette.spec import GenerationSpec


@dataclass(frozen=True, slots=True)
class SongRequest:
    """One variation of one job. Audio is at the model's own rate and channels."""

    spec: GenerationSpec
    seed: int
    source: Samples | None = None
    reference: Samples | None = None


@dataclass(frozen=True, slots=True)
class Song:
    """What the model generated; `warnings` are those that only its audio or its text could tell."""

    samples: Samples
    sample_rate: int
    seed: int
    warnings: tuple[str, ...] = ()


class StepObserver(Protocol):
    """Told of every stage and step; answers which requests (by place in the batch) are no longer wanted."""

    def __call__(self, stage: Stage, step: int | None, steps: int | None) -> frozenset[int]:
        """Tell one stage or step; the same one may be told again as a sign of life."""


class Engine(Protocol):
    """One loaded model. Called from one thread, one batch at a time."""

    @property
    def model(self) -> Model:
        """What is loaded."""

    @property
    def device(self) -> str:
        """What it runs on, for people: `cpu, 2 threads`, `cuda:0, NVIDIA H100`."""

    @property
    def audio_s(self) -> float:
        """Seconds of audio that may be sung at once: a batch of more does not fit."""

    def sampling(self, spec: GenerationSpec) -> tuple[Sampling, tuple[str, ...]]:
        """The spec's sampling with the checkpoint's defaults filled in, and warnings on what was ignored or bounded.

        Raises:
            Unsupported: this checkpoint cannot do the task.
        """

    def duration_s(self, request: SongRequest) -> float:
        """Seconds that the song will last: its spec's, or what its source or its codes give.

        Raises:
            InvalidSpec, InvalidAudio: the source audio or the codes do not allow what the spec asks.
        """

    def generate(self, batch: Sequence[SongRequest], observe: StepObserver) -> Iterator[tuple[int, Song]]:
        """Generate a batch of compatible requests: each song, by its place, as soon as it is decoded.

        Those that `observe` gave up are left out.

        Raises:
            Canceled: every request was given up.
            InvalidSpec, InvalidAudio: as `duration_s`.
            EngineOutOfMemory: the batch does not fit; the engine is usable afterwards.
            EngineCrashed: the device is lost; the process must end.
            InvalidOutput: the samples are not finite.
        """


# Makes the engine; given to the server so that tests can run one that needs no torch.
EngineFactory = Callable[[], Engine]
