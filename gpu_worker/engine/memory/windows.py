"""Latents to samples, a window at a time: bounded memory for songs of any length, several songs in one call.

Pure but for `decode`, which calls a decoder. A window overlaps its neighbours by more than the decoder looks around it,
so that what is kept of it is what the whole song's decoding gives there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# ACE-Step's decoder looks 9.3 latent frames around (measured in float64: at an overlap of 9 what is left is 6e-16).
OVERLAP_FRAMES = 16
# Samples to either side: AutoencoderOobleck's outer convolutions have kernels of 7, its residual units too, with
# dilations 1, 3 and 9.
_OUTER_REACH, _UNITS_REACH = 3, 39


@dataclass(frozen=True, slots=True)
class Windows:
    """How songs are parted: `core_frames` kept of each window, `at_once` of them in one call.

    `fixed`: every window of a song that is longer than one has the same length, for graphs and for kernels that are
    chosen by size. Else the last one is as short as it can be, which costs less.
    """

    core_frames: int
    at_once: int
    fixed: bool
    overlap_frames: int = OVERLAP_FRAMES

    @property
    def frames(self) -> int:
        """Latent frames of the longest window."""
        return self.core_frames + 2 * self.overlap_frames


@dataclass(frozen=True, slots=True)
class Window:
    """Frames `start` to `end` of one song are decoded, `kept_from` to `kept_to` of them are kept."""

    song: int
    start: int
    end: int
    kept_from: int
    kept_to: int
    last: bool

    @property
    def frames(self) -> int:
        """Its length."""
        return self.end - self.start


def overlap_of(downsampling_ratios: Sequence[int]) -> int:
    """Latent frames by which windows of an AutoencoderOobleck's latents overlap: more than its decoder looks around."""
    reach, per_frame = float(_OUTER_REACH), 1
    for ratio in reversed(downsampling_ratios):
        reach += 1 / per_frame  # the transposed convolution
        per_frame *= ratio
        reach += _UNITS_REACH / per_frame
    return max(OVERLAP_FRAMES, math.ceil(reach) + 1)


def windows_of(song: int, frames: int, windows: Windows) -> Iterator[Window]:
    """The windows of a song of so many frames, in order."""
    kept_to = 0
    while kept_to < frames:
        start = max(0, kept_to - windows.overlap_frames)
        end = min(start + windows.frames, frames)
        if windows.fixed:
            start = max(0, end - windows.frames)
        kept_from, kept_to = kept_to, frames if end == frames else end - windows.overlap_frames
        yield Window(song, start, end, kept_from, kept_to, last=end == frames)


def calls_of(frames: Sequence[int], windows: Windows) -> Iterator[list[Window]]:
    """Windows of all songs, song after song, as they share a call: of one length, and at most `at_once`."""
    call: list[Window] = []
    for song, own in enumerate(frames):
        for window in windows_of(song, own, windows):
            if call and (len(call) == windows.at_once or call[0].frames != window.frames):
                yield call
                call = []
            call.append(window)
    if call:
        yield call


def decode(
    decoder: Callable[[Tensor], Tensor],
    latents: Tensor,
    frames: Sequence[int],
    windows: Windows,
    wanted: Callable[[int], bool],
) -> Iterator[tuple[int, Tensor]]:
    """Each song's number and samples [channels, samples] in float32 on the CPU, as soon as its last window is decoded.

    `latents` are [songs, frames, dims], `decoder` takes [windows, dims, frames] to [windows, channels, samples].
    `wanted` is asked before each call, for each song in it.
    """
    songs: dict[int, list[Tensor]] = {}
    for call in calls_of(frames, windows):
        asked = [window for window in call if wanted(window.song)]
        if not asked:
            continue
        given = torch.stack([latents[window.song, window.start : window.end].T for window in asked])
        samples = decoder(given).float().cpu()
        hop = samples.shape[-1] // given.shape[-1]
        for window, decoded in zip(asked, samples, strict=True):
            kept = decoded[:, (window.kept_from - window.start) * hop : (window.kept_to - window.start) * hop]
            songs.setdefault(window.song, []).append(kept)
            if window.last:
                pieces = songs.pop(window.song)
                yield window.song, pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
