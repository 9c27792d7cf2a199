"""From what the decoder gives to what the listener gets: level, length, and the source around a repainted window."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu_worker.engine.tasks import Window

# Streaming platforms and EBU R128 ask for 1 dB of room below full scale.
PEAK = 10.0 ** (-1.0 / 20.0)
# Long enough that a cut does not click, shorter than one latent frame (40 ms).
_CROSSFADE_S = 0.02


def to_peak(samples: Tensor) -> Tensor:
    """Samples with their peak at -1 dBFS, as the stock pipeline gives them."""
    return samples * (PEAK / samples.abs().max().clamp(min=1e-6))


def paste(source: Tensor, sung: Tensor, window: Window, sample_rate: int) -> Tensor:
    """The source with the window sung anew: sample for sample the source outside it, crossfaded inside its ends.

    Both are [channels, frames]; `sung` may be longer and is at the decoder's own level, which is the source's.
    """
    frames = source.shape[-1]
    start = round(window.start_s * sample_rate)
    end = min(round(window.end_s * sample_rate), frames)
    if end <= start:
        return source.clone()
    fade = min(round(_CROSSFADE_S * sample_rate), (end - start) // 2)
    weight = torch.ones(end - start, device=sung.device)
    rise = torch.arange(1, fade + 1, device=sung.device) / (fade + 1)
    if start > 0:
        weight[:fade] = rise
    if end < frames:
        weight[end - start - fade :] = rise.flip(0)
    new = sung[:, start:end]
    new = new / new.abs().max().clamp(min=1.0)
    mixed = source.clone()
    mixed[:, start:end] = torch.lerp(source[:, start:end], new, weight)
    return mixed
