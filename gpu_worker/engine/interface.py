"""What the engine process asks of a model, and what it gets. Imports no torch: a test's engine needs none.

A family of models is registered in `loading.FAMILIES`; everything else here is what its engine is called with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gpu_worker.settings import WorkerSettings
from gpu_worker.wire import Samples
from serinette.errors import Canceled
from serinette.job import Sampling, Stage
from serinette.presence import Model
from serinette.spec import GenerationSpec, Planned

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class SongRequest:
    """One variation of one job. Audio is at the model's own rate and channels."""

    spec: GenerationSpec
    seed: int
    source: Samples | None = None
    reference: Samples | None = None
    lm_seed: int = 0


@dataclass(frozen=True, slots=True)
class Song:
    """What the model generated; `warnings` are those that follow from its audio or its text alone. `audio_codes` are
    those that a planner wrote, with its `plan`.
    """

    samples: Samples
    sample_rate: int
    seed: int
    warnings: tuple[str, ...] = ()
    plan: Planned | None = None
    audio_codes: str | None = None


# Is reported every stage and step, perhaps the same again as a sign of life; answers which requests (by place in the
# batch) are no longer wanted.
StepObserver = Callable[[Stage, int | None, int | None], frozenset[int]]


class BatchProgress:
    """Reports where one batch is. Raises Canceled out of the model's own code once every song is given up."""

    def __init__(self, observe: StepObserver, size: int) -> None:
        self._observe = observe
        self._size = size
        self._last: tuple[Stage, int | None, int | None] = (Stage.CONDITIONING, None, None)
        self.given_up: frozenset[int] = frozenset()

    def report(self, stage: Stage, step: int | None = None, steps: int | None = None) -> None:
        """Report where the model is."""
        self._last = (stage, step, steps)
        self.repeat()

    def repeat(self) -> None:
        """Report the same once more, as a sign of life in the midst of a long stage."""
        self.given_up = self._observe(*self._last)
        if len(self.given_up) == self._size:
            raise Canceled("the song is no longer wanted")


class Engine(Protocol):
    """One loaded model. Called from one thread, one batch at a time."""

    # Seconds that parts of loading took, as fields of ColdStart: weights_s, compile_s. The rest is load_s.
    load_times: Mapping[str, float]

    @property
    def model(self) -> Model:
        """What is loaded."""

    @property
    def device(self) -> str:
        """What it runs on, human-readable: `cpu, 2 threads`, `cuda:0, NVIDIA H100`."""

    def songs_together(self, longest_s: float) -> float:
        """How many songs fit into a batch, the longest of so many seconds; infinity: any number."""

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

    def generate(self, batch: Sequence[SongRequest], observe: StepObserver) -> Iterator[tuple[int, Song | Planned]]:
        """Generate a batch of compatible requests: each song, by its place, as soon as it is decoded. Of tasks that
        are text alone, which come in batches of their own, each text.

        Those that `observe` gave up are left out.

        Raises:
            Canceled: every request was given up.
            InvalidSpec, InvalidAudio: as `duration_s`.
            EngineOutOfMemory: the batch does not fit; the engine is usable afterwards.
            EngineCrashed: the device is lost; the process must end.
            InvalidOutput: the samples are not finite.
        """


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine's disk, and `revision`, what names its bits: the hub's commit, or a SHA-256."""

    directory: Path
    name: str
    revision: str


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """One kind of model: the checkpoints that are its, and how one is loaded.

    `pipeline_classes`: the `_class_name` that a checkpoint's model_index.json may have.
    `load` raises ConfigurationError for files or a device that do not do.
    `advice`: what to do with a directory that has no model_index.json; None for a directory of another family.
    """

    pipeline_classes: frozenset[str]
    load: Callable[[Checkpoint, torch.device, WorkerSettings], Engine]
    advice: Callable[[Path], str | None]
