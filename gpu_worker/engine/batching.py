"""Which waiting songs are sung together. Pure: the server asks, and does as it is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serinette.job import Sampling
from serinette.spec import GenerationSpec


@dataclass(frozen=True, slots=True)
class Kind:
    """What songs of one batch must have in common: the pipeline takes one of each a call."""

    task: str
    duration_s: float
    sampling: Sampling
    timesteps: tuple[float, ...] | None
    cfg_start: float
    cfg_end: float
    lora: str | None
    lora_scale: float


def kind_of(spec: GenerationSpec, sampling: Sampling) -> Kind | None:
    """The spec's kind; None for one that is sung alone.

    Audio makes it so: the decoder's `sample()` draws from the process's one random generator, so that a song on
    audio could not be sung again to the same bits from the midst of others. Codes give each song its own length.
    """
    if spec.source_audio or spec.reference_audio or spec.audio_codes:
        return None
    return Kind(
        task=spec.task,
        duration_s=spec.duration_s,
        sampling=sampling,
        timesteps=spec.timesteps,
        cfg_start=spec.cfg_start,
        cfg_end=spec.cfg_end,
        lora=spec.lora,
        lora_scale=spec.lora_scale,
    )


def plan(waiting: Sequence[Kind | None], room: Room) -> tuple[int, ...]:
    """Places of the songs to sing next: the first in line and those of its kind behind it, while there is room."""
    if not waiting:
        return ()
    first = waiting[0]
    if first is None:
        return (0,)
    return tuple(place for place, kind in enumerate(waiting) if kind == first)[: room.songs(first.duration_s)]


@dataclass(frozen=True, slots=True)
class Room:
    """How much is sung at once: a count of songs, and the seconds of audio that the device's memory has proved to hold.

    Activations grow with the audio of a batch, so that half the audio of one that did not fit is tried next.
    """

    max_batch: int
    audio_s: float = math.inf

    def songs(self, duration_s: float) -> int:
        """How many songs of this length; at least one."""
        return max(1, math.floor(min(self.max_batch, self.audio_s / duration_s)))

    def after_overflow(self, batch: int, duration_s: float) -> Room:
        """What is left to try after so many songs did not fit."""
        return Room(self.max_batch, min(self.audio_s, batch * duration_s / 2))
