"""The encoder's inverse of the comb, by least squares over pieces of our own: which sound was which pin."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gpu_worker.engine.music_box import barrel, codec, comb, lessons
from gpu_worker.engine.music_box.barrel import CHANNELS, PIN
from gpu_worker.engine.music_box.codec import Network
from gpu_worker.engine.music_box.composer import compose

# Ring frames around a pin's, and where codec's three groups of taps take each.
_TAPS = {-3: (0, 0), -2: (0, 1), -1: (1, 0), 0: (1, 1), 1: (1, 2), 2: (1, 3), 3: (2, 2), 4: (2, 3)}
_RIDGE = 1e-3  # of the mean feature power; keeps noise in an upload from being taken for pins


@torch.no_grad()
def listen(pieces: int = 24, seconds: int = 12) -> Tensor:
    """The inverse, [3, EAR_TAPS, CHANNELS, EAR_FEATURES]."""
    vae = codec.autoencoder()
    size = len(_TAPS) * codec.EAR_FEATURES
    power, cross = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, CHANNELS, dtype=torch.float64)
    for number in range(pieces):
        features, pins = _heard(vae, number, seconds * barrel.FRAMES_PER_S)
        power += (features.T @ features).double()
        cross += (features.T @ pins).double()
    power += torch.eye(size) * _RIDGE * power.diagonal().mean()
    answer = torch.linalg.solve(power, cross).float().view(len(_TAPS), codec.EAR_FEATURES, CHANNELS)
    ear = torch.zeros(3, codec.EAR_TAPS, CHANNELS, codec.EAR_FEATURES)
    for place, (group, tap) in enumerate(_TAPS.values()):
        ear[group, tap] = answer[place].T
    return ear


def _heard(vae: Network, number: int, frames: int) -> tuple[Tensor, Tensor]:
    """A piece's features around each latent frame, and the pins that were to be heard."""
    tune, *_ = lessons.draw_tune(random.Random(number), frames)  # noqa: S311 - music, not secrets
    sheet = compose(tune, number, frames=frames)
    mono = vae.decode(torch.from_numpy(sheet).T[None]).sample.mean(dim=1, keepdim=True)
    bands = functional.conv1d(mono, codec.band_filters()[:, None], stride=comb.RING_HOP, padding=comb.RING_HOP // 2)
    ringing = functional.pad(bands[0].T, (0, 0, 3, 6))
    columns = [ringing[3 + shift : 3 + shift + 2 * frames : 2] for shift in _TAPS]
    return torch.cat(columns, dim=1), torch.from_numpy(audible(sheet))


def audible(sheet: barrel.Array) -> barrel.Array:
    """The pins that can be heard: a stop only where a melody note sounds."""
    heard = sheet.copy()
    heard[:, list(barrel.STOPS)] *= np.max(sheet[:, list(barrel.MELODY)], axis=1, keepdims=True) / np.float32(PIN)
    return heard
