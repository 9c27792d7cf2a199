"""What fits on a card, decided before anything is loaded: pure, from the sizes of weights and activations."""

from __future__ import annotations

import math
from dataclasses import dataclass

from serinette.errors import ConfigurationError

# Of what is free. The rest is lost to fragmentation and to kernels' workspaces, which no count of tensors sees.
_OURS = 0.9
_WORKSPACE_BYTES = 512 * 1024**2
# The decoder's tiles: diffusers' own, and its doubles up to a whole song of ten minutes. Few, so that cards of about a
# size sing the same bits. A tile overlaps its neighbours by 128 frames: larger ones waste less.
TILES = (512, 1024, 2048, 4096, 8192, 16384)
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
    frames_per_s: float
    max_duration_s: float
    guidance: bool  # doubles every song


@dataclass(frozen=True, slots=True)
class Plan:
    """How it is loaded, and what may be asked of it. `tile` None: songs are decoded whole."""

    offload: bool
    tile: int | None
    audio_s: float  # of all songs that are sung together
    longest_s: float  # of one song


def plan(need: Need, free_bytes: int, *, offload: bool | None = None, tiling: bool | None = None) -> Plan:
    """The plan for a card with so many bytes free. None leaves the choice to the plan; True for `tiling` is diffusers'
    own tile.

    Raises:
        ConfigurationError: not even one second of a song would fit.
    """
    if offload is None:
        whole = _plan(need, free_bytes, False, tiling)
        offload = whole.longest_s < min(_SHORTEST_S, need.max_duration_s)
    made = _plan(need, free_bytes, offload, tiling)
    if made.longest_s < 1:
        raise ConfigurationError(
            f"the model does not fit: its weights take {_gib(need.weights_bytes)}"
            f"{f', {_gib(need.largest_part_bytes)} of them at a time' if offload else ''}, and of the "
            f"{_gib(free_bytes)} free on the device too little is left for a second of music; give it a larger device"
            f"{'' if offload else ' or set SERINETTE_CPU_OFFLOAD=true'}"
        )
    return made


def _plan(need: Need, free_bytes: int, offload: bool, tiling: bool | None) -> Plan:
    held_bytes = need.largest_part_bytes if offload else need.weights_bytes
    room_bytes = free_bytes * _OURS - _WORKSPACE_BYTES - held_bytes
    longest = need.max_duration_s * need.frames_per_s
    tile = _tile(need.decoder, room_bytes, longest, tiling)
    decoded = need.decoder.frames_in(room_bytes)
    sung = need.transformer.frames_in(room_bytes) / (2 if need.guidance else 1)
    fits = sung if tile and decoded >= tile else min(sung, decoded)
    return Plan(
        offload=offload,
        tile=tile,
        audio_s=max(0.0, sung) / need.frames_per_s,
        longest_s=min(need.max_duration_s, math.floor(max(0.0, fits) / need.frames_per_s)),
    )


def _tile(decoder: Line, room_bytes: float, longest: float, tiling: bool | None) -> int | None:
    if tiling is not None:
        return TILES[0] if tiling else None
    fitting = [tile for tile in TILES if decoder.bytes_of(tile) <= room_bytes]
    tile = max(fitting, default=TILES[0])
    return None if tile >= longest else tile


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 1024**3:.1f} GiB"
