"""The comb written into AutoencoderOobleck's weights in closed form: no training, and plain `from_pretrained` loads it.

Decoding: the first Snake activation rounds pins to 0 or `PIN`, opens melody pins only where their stop is open and the
bass only where its pin stands; the residual units of the first block ring (dilations 1, 3 and 9 make 63 slow ring
frames of a damped turn); those of the second shape the attack and give back the head start that the ring took; the
third block's transposed convolution sounds the ring frames. Encoding is the least-squares inverse, found once by
`inverse`.

A Snake is x + sin(a x)^2 / b. With b = a and the input moved by a quarter period it is a staircase, flat at whole
multiples of pi / a; with a tiny `a` it is the identity.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor
from torch.nn import functional

from tools.music_box import barrel, comb, lessons
from tools.music_box.barrel import CHANNELS, PIN, Array
from tools.music_box.composer import compose

Network = Any  # a module of diffusers, which ships no types

WIDTH = 19  # the decoder's channels at the sample rate
RING = 10 * WIDTH  # ring channels, at 80 and at 160 frames/s
GATES = 9 * WIDTH  # channels at the latent rate, through the rounding Snake
EAR_FEATURES = 192  # band signals that the encoder takes its decision on
EAR_TAPS = 4  # ring frames to one group; three groups two frames apart
_LINEAR = -20.0  # log of a Snake's alpha that makes it the identity
_DELAY = 3  # latent frames: the first convolution's furthest tap; the ring's head start gives them back
_HEAD_START = 3  # blocks that the ring begins early; the second block's units give them back, but for the delay above


def autoencoder(ear: Tensor | None = None) -> Network:
    """The codec. `ear` [3, EAR_TAPS, CHANNELS, EAR_FEATURES] is the encoder's inverse; without it, only decodes."""
    vae = AutoencoderOobleck(
        encoder_hidden_size=2 * CHANNELS,
        downsampling_ratios=[comb.RING_HOP, 2, 2],
        channel_multiples=[RING // WIDTH, RING // WIDTH, GATES // WIDTH],
        decoder_channels=WIDTH,
        decoder_input_channels=CHANNELS,
        audio_channels=2,
        sampling_rate=comb.SAMPLE_RATE,
    ).eval()
    with torch.no_grad():
        _make_transparent(vae)
        _Ring(vae.decoder, _Gates(vae.decoder))
        _write_ear(vae.encoder, torch.zeros(3, EAR_TAPS, CHANNELS, EAR_FEATURES) if ear is None else ear)
    return vae


def _make_transparent(vae: Network) -> None:
    """Every activation the identity, every residual branch and bias zero."""
    for module in vae.modules():
        kind = type(module).__name__
        if kind == "Snake1d":
            module.alpha.fill_(_LINEAR)
            module.beta.zero_()
        elif kind == "OobleckResidualUnit":
            for convolution in (module.conv1, module.conv2):
                write(convolution, torch.zeros_like(convolution.weight_v))
        if getattr(module, "bias", None) is not None and kind.startswith("Conv"):
            module.bias.zero_()


def write(convolution: Network, weight: Tensor) -> None:
    """Set the weight of a weight-normed convolution."""
    norm = weight.flatten(1).norm(dim=1).view(-1, 1, 1)
    convolution.weight_g.copy_(norm)
    convolution.weight_v.copy_(torch.where(norm > 0, weight, torch.ones_like(weight)))


class _Gates:
    """The first convolution and its Snake. Says which sums of its outputs give each tooth's pin, rounded and gated."""

    def __init__(self, decoder: Network) -> None:
        self.weight = torch.zeros_like(decoder.conv1.weight_v)
        self.bias = torch.zeros_like(decoder.conv1.bias)
        self.snake = decoder.block[0].snake1
        self.used = 0
        self.sums: dict[tuple[str, int], dict[int, float]] = {}
        self.one = self._take(())
        self.bias[self.one] = 1.0
        paired = (*barrel.MELODY, *barrel.ACCOMPANIMENT, barrel.BASS, *barrel.STOPS)
        self._plain = {channel: self._take((channel,)) for channel in paired}
        for channel in (*barrel.ACCOMPANIMENT, *barrel.DRUMS):
            self.sums["plain", channel] = self._stair((channel,))
        for channel in barrel.ACCOMPANIMENT:
            self.sums["bass", channel] = self._both(channel, barrel.BASS)
        for instrument, stop in zip(barrel.INSTRUMENTS, barrel.STOPS, strict=True):
            for channel in barrel.MELODY:
                self.sums[instrument, channel] = self._both(channel, stop)
        write(decoder.conv1, self.weight)
        decoder.conv1.bias.copy_(self.bias)

    def _both(self, channel: int, other: int) -> dict[int, float]:
        """0, PIN and 2 PIN (both pins) become 0, 0 and PIN, flat at all three."""
        sums = {gate: 0.5 * factor for gate, factor in self._stair((channel, other)).items()}
        return sums | {self._hump((channel, other)): -0.5, self._plain[channel]: 0.5, self._plain[other]: 0.5}

    def _stair(self, channels: tuple[int, ...]) -> dict[int, float]:
        """The sum of the channels, rounded to multiples of PIN."""
        place = self._take(channels)
        self.bias[place] = -PIN / 4
        self.snake.alpha[0, place] = self.snake.beta[0, place] = math.log(math.pi / PIN)
        return {place: 1.0, self.one: PIN / 4 - PIN / (2 * math.pi)}

    def _hump(self, channels: tuple[int, ...]) -> int:
        """The sum of the channels, and PIN more at odd multiples of PIN."""
        place = self._take(channels)
        self.snake.alpha[0, place] = math.log(math.pi / (2 * PIN))
        self.snake.beta[0, place] = -math.log(PIN)
        return place

    def _take(self, channels: tuple[int, ...]) -> int:
        place = self.used
        self.used += 1
        for channel in channels:
            self.weight[place, channel, 3 - _DELAY] = 1.0
        return place


class _Ring:
    """The ringing block, the one that shapes attacks, and the sounding one."""

    def __init__(self, decoder: Network, gates: _Gates) -> None:
        slow, fast, sounding = decoder.block
        self.excite = torch.zeros_like(slow.conv_t1.weight_v)
        self.double = torch.zeros_like(fast.conv_t1.weight_v)
        self.sound = torch.zeros_like(sounding.conv_t1.weight_v)
        units = [[getattr(block, f"res_unit{number}") for number in (1, 2, 3)] for block in (slow, fast)]
        self.slow, self.fast = ([torch.zeros_like(unit.conv1.weight_v) for unit in three] for three in units)
        self.places: dict[tuple[str, int], int] = {}
        self.used = 0
        for name in comb.STROKES:
            self._stroke(name)
        self._teeth(gates.sums)
        for convolution, weight in ((slow, self.excite), (fast, self.double), (sounding, self.sound)):
            write(convolution.conv_t1, weight)
        for three, weights in zip(units, (self.slow, self.fast), strict=True):
            for unit, weight in zip(three, weights, strict=True):
                write(unit.conv1, weight)
                write(unit.conv2, torch.eye(RING)[:, :, None])
        out = torch.zeros_like(decoder.conv2.weight_v)
        out[0, 0, 3] = out[1, 1, 3] = 1.0
        write(decoder.conv2, out)

    def _teeth(self, sums: dict[tuple[str, int], dict[int, float]]) -> None:
        for tooth, channel in enumerate(barrel.MELODY):
            for name in comb.MELODY_PARTIALS:
                self._ring(name, channel, comb.melody_partial(name, tooth))
        for tooth, channel in enumerate(barrel.ACCOMPANIMENT):
            for name in comb.ACCOMPANIMENT_PARTIALS:
                self._ring(name, channel, comb.accompaniment_partial(name, tooth))
            self._ring("deep", channel, comb.bass_partial(tooth))
        self._ring("thud", barrel.THUMP, comb.THUD)
        for (kind, channel), row in sums.items():
            for name, gain in _excitation(kind, channel).items():
                # A phasor begins as a sine.
                place = self.places.get((name, channel))
                at, sign = (self.places[name, -1], 1.0) if place is None else (place + 1, -1.0)
                for gate, weight in row.items():
                    self.excite[gate, at, 3] += sign * gain * weight / PIN

    def _stroke(self, name: str) -> None:
        place = self._take(name, -1, 1)
        self.sound[place, :2] = torch.from_numpy(comb.stroke_kernel(name))
        self.double[place, place, 1] = 1.0
        for weight, tap in ((self.slow[2], 3 + _HEAD_START), (self.fast[1], 0), (self.fast[2], 0)):
            weight[place, place, tap] = 1.0
            weight[place, place, 3] = -1.0

    def _ring(self, name: str, channel: int, partial: comb.Partial) -> None:
        place = self._take(name, channel, 2)
        kernels = comb.partial_kernel(partial)
        self.sound[place, :2], self.sound[place + 1, :2] = map(torch.from_numpy, kernels)
        fading = partial.fading
        turn = 2 * np.pi * partial.hertz / comb.RING_RATE
        step = fading.decay * np.exp(2j * turn)  # of a slow ring frame, which is two
        for taps, weight in zip(({1: step, 2: step**2}, {1: step**3, 2: step**6}), self.slow[:2], strict=True):
            for delay, factor in taps.items():
                self._rotate(weight, place, 3 - delay, factor)
        for block, gain in enumerate(fading.blocks):
            factor = gain * step ** (9 * block) - (1 if block == _HEAD_START else 0)
            self._rotate(self.slow[2], place, 3 + _HEAD_START - block, factor)
        for tap, factor in ((1, 1.0), (2, np.sqrt(fading.decay) * np.exp(1j * turn))):
            self._rotate(self.double, place, tap, complex(factor), transposed=True)
        for delay, gain in enumerate(fading.attack):
            factor = gain * np.exp(1j * turn * delay) - (1 if delay == 0 else 0)
            self._rotate(self.fast[0], place, 3 - delay, factor)
        for weight in self.fast[1:]:
            self._rotate(weight, place, 0, 1.0)
            self._rotate(weight, place, 3, -1.0)

    def _take(self, name: str, channel: int, width: int) -> int:
        place = self.places[name, channel] = self.used
        self.used += width
        return place

    @staticmethod
    def _rotate(weight: Tensor, place: int, tap: int, factor: complex, *, transposed: bool = False) -> None:
        """Add a turn to the two channels of a phasor; a transposed convolution has its inputs first."""
        real, imaginary = np.real(factor), np.imag(factor) * (-1 if transposed else 1)
        weight[place, place, tap] += real
        weight[place + 1, place + 1, tap] += real
        weight[place, place + 1, tap] -= imaginary
        weight[place + 1, place, tap] += imaginary


def _excitation(kind: str, channel: int) -> comb.Excitation:
    if kind in comb.INSTRUMENTS:
        return comb.INSTRUMENTS[kind]
    if kind == "bass":
        return comb.BASS
    return comb.ACCOMPANIMENT if channel in barrel.ACCOMPANIMENT else comb.DRUMS[channel]


def _write_ear(encoder: Network, ear: Tensor) -> None:
    """Band signals, then the inverse: three groups of taps, which the last convolution brings to one frame."""
    front = torch.zeros_like(encoder.conv1.weight_v)
    front[0, :, 3] = 0.5
    write(encoder.conv1, front)
    bands = torch.zeros_like(encoder.block[0].conv1.weight_v)
    bands[:EAR_FEATURES, 0] = band_filters()
    write(encoder.block[0].conv1, bands)
    joined = torch.zeros_like(encoder.block[1].conv1.weight_v)
    joined[:EAR_FEATURES, :EAR_FEATURES] = band_joints()
    write(encoder.block[1].conv1, joined)
    groups = torch.zeros_like(encoder.block[2].conv1.weight_v)
    gather = torch.zeros_like(encoder.conv2.weight_v)
    for group in range(3):
        rows = slice(group * CHANNELS, (group + 1) * CHANNELS)
        groups[rows, :EAR_FEATURES] = ear[group].permute(1, 2, 0)
        gather[:CHANNELS, rows, group] = torch.eye(CHANNELS)
    write(encoder.block[2].conv1, groups)
    write(encoder.conv2, gather)
    encoder.conv2.bias[CHANNELS:] = -9.0  # the scale of a sample: next to none


_BANDS = 40.0 * np.arange(1, EAR_FEATURES // 2 + 1)  # hertz
_JOINED = (0.4, 1.0, 1.0, 0.4)  # of short windows, so that one long window of 31 ms is all but a Hann window


def band_filters() -> Tensor:
    """Windowed cosines and sines 40 Hz apart, from 40 Hz up, [EAR_FEATURES, 2 * RING_HOP]."""
    at = np.arange(2 * comb.RING_HOP) - comb.RING_HOP + 0.5
    window = 0.5 + 0.5 * np.cos(np.pi * at / comb.RING_HOP)
    turn = 2 * np.pi * _BANDS[:, None] * at / comb.SAMPLE_RATE
    return torch.from_numpy(np.concatenate([window * np.cos(turn), window * np.sin(turn)])).float() / 40


def band_joints() -> Tensor:
    """What makes of four ring frames of short windows a slow one of a long window, [EAR_FEATURES, EAR_FEATURES, 4]."""
    count = len(_BANDS)
    bands = np.arange(count)
    joints = np.zeros((EAR_FEATURES, EAR_FEATURES, len(_JOINED)))
    for tap, weight in enumerate(_JOINED):
        turn = 2 * np.pi * _BANDS * (tap - 1.5) / comb.RING_RATE
        joints[bands, bands, tap] = joints[bands + count, bands + count, tap] = weight * np.cos(turn)
        joints[bands, bands + count, tap] = -weight * np.sin(turn)
        joints[bands + count, bands, tap] = weight * np.sin(turn)
    return torch.from_numpy(joints).float()


# Slow ring frames around a pin's, and where codec's three groups of taps take each.
_TAPS = {-3: (0, 0), -2: (0, 1), -1: (1, 0), 0: (1, 1), 1: (1, 2), 2: (1, 3), 3: (2, 2), 4: (2, 3)}
_RIDGE = 1e-3  # of the mean feature power; keeps noise in an upload from being taken for pins


@torch.no_grad()
def inverse(pieces: int = 24, seconds: int = 12) -> Tensor:
    """The encoder's inverse of the comb, by least squares over our pieces: [3, EAR_TAPS, CHANNELS, EAR_FEATURES]."""
    vae = autoencoder()
    size = len(_TAPS) * EAR_FEATURES
    power, cross = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, CHANNELS, dtype=torch.float64)
    for number in range(pieces):
        features, pins = _heard(vae, number, seconds * barrel.FRAMES_PER_S)
        power += (features.T @ features).double()
        cross += (features.T @ pins).double()
    power += torch.eye(size) * _RIDGE * power.diagonal().mean()
    answer = torch.linalg.solve(power, cross).float().view(len(_TAPS), EAR_FEATURES, CHANNELS)
    ear = torch.zeros(3, EAR_TAPS, CHANNELS, EAR_FEATURES)
    for place, (group, tap) in enumerate(_TAPS.values()):
        ear[group, tap] = answer[place].T
    return ear


def _heard(vae: Network, number: int, frames: int) -> tuple[Tensor, Tensor]:
    """A piece's features around each latent frame, and the pins that were to be heard."""
    tune, *_ = lessons.draw_tune(random.Random(number), frames)  # noqa: S311 - music, not secrets
    sheet = compose(tune, number, frames=frames)
    mono = vae.decode(torch.from_numpy(sheet).T[None]).sample.mean(dim=1, keepdim=True)
    bands = functional.conv1d(mono, band_filters()[:, None], stride=comb.RING_HOP, padding=comb.RING_HOP // 2)
    bands = functional.conv1d(bands, band_joints(), stride=2, padding=1)
    ringing = functional.pad(bands[0].T, (0, 0, 3, 6))
    columns = [ringing[3 + shift : 3 + shift + 2 * frames : 2] for shift in _TAPS]
    return torch.cat(columns, dim=1), torch.from_numpy(audible(sheet))


def audible(sheet: Array) -> Array:
    """The pins that can be heard: a stop only where a melody note sounds."""
    heard = sheet.copy()
    heard[:, list(barrel.STOPS)] *= np.max(sheet[:, list(barrel.MELODY)], axis=1, keepdims=True) / np.float32(PIN)
    return heard
