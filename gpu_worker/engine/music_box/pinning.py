"""Pins from what the encoder made of a recording: what the transformer is to learn from it."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu_worker.engine.music_box.barrel import PIN, STOPS


def pinned(latents: Tensor) -> Tensor:
    """The sheet [frames, CHANNELS] of 0 and PIN that was played, from the encoder's latents of it.

    The encoder hears at the recording's level, and a stop only while a melody note sounds: both are put right.
    """
    level = latents[latents > latents.max() / 2].median()
    sheet = (latents > level / 2) * PIN
    stops = latents[:, STOPS.start : STOPS.stop]
    heard = ((stops > level / 4) * stops.square()).sum(dim=0)  # below is what one leaks into another
    sheet[:, STOPS.start : STOPS.stop] = (heard > heard.max() / 3) * PIN
    return torch.as_tensor(sheet, dtype=latents.dtype)
