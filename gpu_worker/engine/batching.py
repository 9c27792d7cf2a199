"""Which waiting songs are sung together. Pure: the server asks, and does as it is told."""

from __future__ import annotations

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


def plan(waiting: Sequence[Kind | None], max_batch: int) -> tuple[int, ...]:
    """Places of the songs to sing next: the first in line, and those of its kind behind it, `max_batch` in all."""
    if not waiting:
        return ()
    first = waiting[0]
    if first is None:
        return (0,)
    return tuple(place for place, kind in enumerate(waiting) if kind == first)[:max_batch]
