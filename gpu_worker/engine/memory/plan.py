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
class Line:
    """Bytes over latent frames: `fixed` + `per_frame` times the frames."""

    fixed: float
    per_frame: float

    def bytes_of(self, frames: float) -> float:
        """Bytes that so many frames take."""
        return self.fixed + self.per_frame * frames

    def frames_in(self, size_bytes: float) -> float:
        """Frames that fit into so many bytes."""
        return (size_bytes - self.fixed) / self.per_frame


@dataclass(frozen=True, slots=True)
class Need:
    """What a checkpoint needs, in bytes; frames are latent ones."""

    weights_bytes: int
    largest_part_bytes: int
    transformer: Line
    decoder: Line
    text_bytes: int  # what each song's longest text takes while it is denoised: keys and values of all layers
    frames_per_s: float
    max_duration_s: float
    guidance: bool  # doubles every song


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is loaded, how songs are decoded, and what may be asked of it."""

    offload: bool
    windows: Windows
    audio_s: float  # of all songs that are generated together
    longest_s: float  # of one song


def plan(need: Need, free_bytes: int, *, max_batch: int = 1, offload: bool | None = None) -> Plan:
    """The plan for a card with so many bytes free, and at most so many songs together. None: the plan chooses.

    Raises:
        ConfigurationError: not even one second of a song would fit.
    """
    if offload is None:
        whole = _plan(need, free_bytes, max_batch, False)
        offload = whole.longest_s < min(_SHORTEST_S, need.max_duration_s)
    made = _plan(need, free_bytes, max_batch, offload)
    if made.longest_s < 1:
        raise ConfigurationError(
            f"the model does not fit: its weights take {_gib(need.weights_bytes)}"
            f"{f', {_gib(need.largest_part_bytes)} of them at a time' if offload else ''}, and of the "
            f"{_gib(free_bytes)} free on the device too little is left for a second of music; give it a larger device"
            f"{'' if offload else ' or set SERINETTE_CPU_OFFLOAD=true'}"
        )
    return made


def _plan(need: Need, free_bytes: int, max_batch: int, offload: bool) -> Plan:
    held_bytes = need.largest_part_bytes if offload else need.weights_bytes
    room_bytes = free_bytes * _OURS - _WORKSPACE_BYTES - held_bytes
    guided = 2 if need.guidance else 1
    # The transformer's line has one text; guidance has one more for each song, a batch one for each of its songs.
    alone, together = (
        max(0.0, need.transformer.frames_in(room_bytes - need.text_bytes * (songs * guided - 1)) / guided)
        for songs in (1, max_batch)
    )
    window = Windows(CARD_FRAMES, 1, fixed=True).frames
    at_once = math.floor(need.decoder.frames_in(room_bytes) / window)
    longest = min(alone, need.max_duration_s * need.frames_per_s) if at_once >= 1 else 0.0
    return Plan(
        offload=offload,
        windows=Windows(CARD_FRAMES, max(1, min(_MOST_WINDOWS, at_once)), fixed=True),
        # At the least what one song may have: then songs are generated one by one.
        audio_s=max(together, longest) / need.frames_per_s,
        longest_s=math.floor(longest / need.frames_per_s),
    )


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 1024**3:.1f} GiB"
