"""Which waiting songs are generated together. Pure: the server acts on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from serinette.job import Sampling
from serinette.spec import GenerationSpec

# Of two 10 s songs on a CPU, sharing takes about 0.7 of the time that both take alone, and about 0.9 when a tenth of
# the batch is filled up: little is left to win. A GPU may bear more, which was not measured (docs/engine.md).
MOST_PADDING = 0.1


@dataclass(frozen=True, slots=True)
class Kind:
    """What songs of one batch must have in `common`: the pipeline takes one of each a call.

    Sources and references are each song's own. Lengths may differ, at a price: shorter songs are filled up to the
    longest while they are denoised.
    """

    duration_s: float = field(compare=False)
    common: tuple[object, ...]


def kind_of(spec: GenerationSpec, sampling: Sampling, duration_s: float) -> Kind:
    """The kind of a spec whose song lasts so long."""
    does = "text" if spec.task.text_alone else "planned song" if spec.planned else "song"
    options = spec.timesteps, spec.cfg_start, spec.cfg_end, spec.lora, spec.lora_scale
    return Kind(duration_s, (does, sampling, *options))


def plan(waiting: Sequence[Kind | None], room: Room) -> tuple[int, ...]:
    """Places of the songs to generate next: the first in line and those of its kind behind it, while there is room.
    None is a song that must be alone.

    One of another length is passed over where filling up would cost more than company saves.
    """
    if not waiting:
        return ()
    first = waiting[0]
    if first is None:
        return (0,)
    places: list[int] = [0]
    durations_s = [first.duration_s]
    for place, kind in enumerate(waiting[1:], start=1):
        if kind is None or kind != first:
            continue
        together = [*durations_s, kind.duration_s]
        if len(together) <= room.songs(max(together)) and padding(together) <= MOST_PADDING:
            places.append(place)
            durations_s = together
    return tuple(places)


def padding(durations_s: Sequence[float]) -> float:
    """The share of a batch that is not music: what shorter songs are filled up with."""
    return 1 - sum(durations_s) / (len(durations_s) * max(durations_s))


@dataclass(frozen=True, slots=True)
class Room:
    """How much is generated at once: a count of songs, how many of a length the device's memory holds by the plan, and
    the seconds of audio that it has been found to hold.

    Activations grow with the audio of a batch, so that half the audio of a batch that did not fit is tried next.
    """

    max_batch: int
    audio_s: float = math.inf
    fits: Callable[[float], float] = lambda _longest_s: math.inf

    def songs(self, longest_s: float) -> int:
        """How many songs, the longest of this length; at least one."""
        return max(1, math.floor(min(self.max_batch, self.audio_s / longest_s, self.fits(longest_s))))

    def after_overflow(self, batch: int, longest_s: float) -> Room:
        """What is left to try after so many songs, the longest of this length, did not fit."""
        return replace(self, audio_s=min(self.audio_s, batch * longest_s / 2))
