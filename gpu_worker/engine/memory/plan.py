"""What fits on a card, decided before anything is loaded: pure, from the sizes of weights and activations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpu_worker.engine.memory.windows import Windows
from serinette.errors import ConfigurationError

# Of what is free. The rest is lost to fragmentation and to kernels' workspaces, which no count of tensors sees.
_OURS = 0.9
_WORKSPACE_BYTES = 512 * 1024**2
# Latent frames kept of each window that is decoded: 10 s, with kernels and graphs for one size. On a CPU, whose kernels
# are chosen anew for nothing, longer windows do less work twice.
CARD_FRAMES, CPU_FRAMES = 256, 512
# More at once are no faster, and a tensor of the decoder's must not pass 2**31 elements: 8,192 frames of its widest.
_MOST_WINDOWS = 16
CPU_WINDOWS = Windows(CPU_FRAMES, 1, fixed=False)
# A card that cannot hold this much at once without parting the model is better off parting it.
_SHORTEST_S = 30.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Bytes over a song's latent frames: `fixed` + `per_frame` times the frames + `per_square` times their square."""

    fixed: float
    per_frame: float
    per_square: float = 0.0

    def bytes_of(self, frames: float) -> float:
        """Bytes that a song of so many frames takes."""
        return self.fixed + (self.per_frame + self.per_square * frames) * frames

    def frames_in(self, size_bytes: float) -> float:
        """Frames of a song that fits into so many bytes; 0 for none."""
        left_bytes = size_bytes - self.fixed
        if left_bytes <= 0:
            return 0.0
        # The root of the square that stays exact where `per_square` is 0 or small.
        return 2 * left_bytes / (self.per_frame + math.sqrt(self.per_frame**2 + 4 * self.per_square * left_bytes))


@dataclass(frozen=True, slots=True)
class Need:
    """What a checkpoint needs, in bytes; frames are latent ones."""

    weights_bytes: int
    largest_part_bytes: int
    # A song's denoising step, its longest text's keys and values among it: it takes the largest of these.
    steps: tuple[Curve, ...]
    decoder: Curve
    frames_per_s: float
    max_duration_s: float
    guidance: bool  # doubles every song


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is loaded, how songs are decoded, and what may be asked of it.

    `room_bytes` are left for the `steps` of the songs of a batch, each of which takes the largest of these.
    """

    offload: bool
    windows: Windows
    longest_s: float
    room_bytes: float = math.inf
    steps: tuple[Curve, ...] = ()
    frames_per_s: float = 25.0

    def songs(self, longest_s: float) -> float:
        """How many songs are generated at once, the longest of so many seconds; at least one, infinity: any number."""
        song_bytes = max((curve.bytes_of(longest_s * self.frames_per_s) for curve in self.steps), default=0.0)
        return max(1, self.room_bytes // song_bytes) if song_bytes else math.inf


def plan(need: Need, free_bytes: int, *, offload: bool | None = None) -> Plan:
    """The plan for a card with so many bytes free. None: the plan chooses.

    Raises:
        ConfigurationError: not even one second of a song would fit.
    """
    if offload is None:
        offload = _plan(need, free_bytes, False).longest_s < min(_SHORTEST_S, need.max_duration_s)
    made = _plan(need, free_bytes, offload)
    if made.longest_s < 1:
        raise ConfigurationError(
            f"the model does not fit: its weights take {_gib(need.weights_bytes)}"
            f"{f', {_gib(need.largest_part_bytes)} of them at a time' if offload else ''}, and of the "
            f"{_gib(free_bytes)} free on the device too little is left for a second of music; give it a larger device"
            f"{'' if offload else ' or set SERINETTE_CPU_OFFLOAD=true'}"
        )
    return made


def _plan(need: Need, free_bytes: int, offload: bool) -> Plan:
    held_bytes = need.largest_part_bytes if offload else need.weights_bytes
    room_bytes = free_bytes * _OURS - _WORKSPACE_BYTES - held_bytes
    guided_bytes = room_bytes / (2 if need.guidance else 1)
    window = Windows(CARD_FRAMES, 1, fixed=True).frames
    at_once = math.floor(need.decoder.frames_in(room_bytes) / window)
    fit = min(curve.frames_in(guided_bytes) for curve in need.steps)
    longest = min(fit, need.max_duration_s * need.frames_per_s) if at_once >= 1 else 0.0
    return Plan(
        offload=offload,
        windows=Windows(CARD_FRAMES, max(1, min(_MOST_WINDOWS, at_once)), fixed=True),
        longest_s=math.floor(longest / need.frames_per_s),
        room_bytes=guided_bytes,
        steps=need.steps,
        frames_per_s=need.frames_per_s,
    )


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 1024**3:.1f} GiB"
