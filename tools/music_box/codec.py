"""The comb written into AutoencoderOobleck's weights in closed form: no training, and plain `from_pretrained` loads it.

Decoding: the first Snake activation rounds pins to 0 or `PIN` and opens melody pins only where their stop is open;
the residual units of the first block ring (dilations 1, 3 and 9 make 45 ring frames of a damped turn); the second
block's transposed convolution sounds the ring frames. Encoding is the least-squares inverse, found once by `inverse`.

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

WIDTH = 20  # the decoder's channels at the sample rate
RING = 8 * WIDTH  # ring channels at 80 frames/s
GATES = 6 * WIDTH  # channels at the latent rate, through the rounding Snake
EAR_FEATURES = 192  # band signals that the encoder takes its decision on
EAR_TAPS = 4  # ring frames to one group; three groups two frames apart
_LINEAR = -20.0  # log of a Snake's alpha that makes it the identity
_DELAY = 3  # latent frames: the first convolution's furthest tap; the ring's head start gives them back


def autoencoder(ear: Tensor | None = None) -> Network:
    """The codec. `ear` [3, EAR_TAPS, CHANNELS, EAR_FEATURES] is the encoder's inverse; without it, only decodes."""
    vae = AutoencoderOobleck(
        encoder_hidden_size=2 * CHANNELS,
        downsampling_ratios=[comb.RING_HOP, 2],
        channel_multiples=[RING // WIDTH, GATES // WIDTH],
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
        plain = {channel: self._take((channel,)) for channel in (*barrel.MELODY, *barrel.STOPS)}
        for channel in (*barrel.ACCOMPANIMENT, *barrel.DRUMS):
            self.sums["plain", channel] = self._stair((channel,))
        for instrument, stop in zip(barrel.INSTRUMENTS, barrel.STOPS, strict=True):
            for channel in barrel.MELODY:
                # 0, PIN and 2 PIN (pin and stop) become 0, 0 and PIN, flat at all three.
                sums = {gate: 0.5 * factor for gate, factor in self._stair((channel, stop)).items()}
                sums |= {self._hump((channel, stop)): -0.5, plain[channel]: 0.5, plain[stop]: 0.5}
                self.sums[instrument, channel] = sums
        write(decoder.conv1, self.weight)
        decoder.conv1.bias.copy_(self.bias)

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
    """The ringing block and the sounding one."""

    def __init__(self, decoder: Network, gates: _Gates) -> None:
        self.excite = torch.zeros_like(decoder.block[0].conv_t1.weight_v)
        self.sound = torch.zeros_like(decoder.block[1].conv_t1.weight_v)
        units = [getattr(decoder.block[0], f"res_unit{i}") for i in (1, 2, 3)]
        self.filters = [torch.zeros_like(unit.conv1.weight_v) for unit in units]
        self.used = len(comb.STROKES)
        for place, name in enumerate(comb.STROKES):
            self.sound[place, :2] = torch.from_numpy(comb.stroke_kernel(name))
            self._pass_through(place)
        for (kind, channel), row in gates.sums.items():
            self._tooth(_tooth(kind, channel), row)
        write(decoder.block[0].conv_t1, self.excite)
        write(decoder.block[1].conv_t1, self.sound)
        for unit, weight in zip(units, self.filters, strict=True):
            write(unit.conv1, weight)
            write(unit.conv2, torch.eye(RING)[:, :, None])
        out = torch.zeros_like(decoder.conv2.weight_v)
        out[0, 0, 3] = out[1, 1, 3] = 1.0
        write(decoder.conv2, out)

    def _tooth(self, tooth: comb.Tooth, row: dict[int, float]) -> None:
        for voice in tooth.voices:
            place = self.used
            self.used += 2
            self._excite(place + 1, row, -1.0)  # begins as a sine
            kernels = comb.partial_kernel(voice)
            self.sound[place, :2], self.sound[place + 1, :2] = map(torch.from_numpy, kernels)
            self._turn(place, voice)
        for name, gain in tooth.strokes:
            self._excite(comb.STROKES.index(name), row, gain)

    def _excite(self, place: int, row: dict[int, float], gain: float) -> None:
        for gate, weight in row.items():
            self.excite[gate, place, 3] += gain * weight / PIN

    def _turn(self, place: int, voice: comb.Voice) -> None:
        step = voice.decay * np.exp(2j * np.pi * voice.hertz / comb.RING_RATE)
        for taps, weight in zip(({1: step, 2: step**2}, {1: step**3, 2: step**6}), self.filters[:2], strict=True):
            for delay, factor in taps.items():
                self._rotate(weight, place, 3 - delay, factor)
        for block, gain in enumerate(voice.blocks):
            factor = gain * step ** (9 * block) - (1 if block == 1 else 0)
            self._rotate(self.filters[2], place, 4 - block, factor)

    @staticmethod
    def _rotate(weight: Tensor, place: int, tap: int, factor: complex) -> None:
        weight[place, place, tap] = weight[place + 1, place + 1, tap] = factor.real
        weight[place, place + 1, tap] = -factor.imag
        weight[place + 1, place, tap] = factor.imag

    def _pass_through(self, place: int) -> None:
        self.filters[2][place, place, 4] = 1.0
        self.filters[2][place, place, 3] = -1.0


def _tooth(kind: str, channel: int) -> comb.Tooth:
    if kind != "plain":
        return comb.melody(kind, channel)
    if channel in barrel.ACCOMPANIMENT:
        return comb.accompaniment(channel - barrel.ACCOMPANIMENT.start)
    return comb.drum(channel)


def _write_ear(encoder: Network, ear: Tensor) -> None:
    """Band signals, then the inverse: three groups of taps, which the last convolution brings to one frame."""
    front = torch.zeros_like(encoder.conv1.weight_v)
    front[0, :, 3] = 0.5
    write(encoder.conv1, front)
    bands = torch.zeros_like(encoder.block[0].conv1.weight_v)
    bands[:EAR_FEATURES, 0] = band_filters()
    write(encoder.block[0].conv1, bands)
    groups = torch.zeros_like(encoder.block[1].conv1.weight_v)
    gather = torch.zeros_like(encoder.conv2.weight_v)
    for group in range(3):
        rows = slice(group * CHANNELS, (group + 1) * CHANNELS)
        groups[rows, :EAR_FEATURES] = ear[group].permute(1, 2, 0)
        gather[:CHANNELS, rows, group] = torch.eye(CHANNELS)
    write(encoder.block[1].conv1, groups)
    write(encoder.conv2, gather)
    encoder.conv2.bias[CHANNELS:] = -9.0  # the scale of a sample: next to none


def band_filters() -> Tensor:
    """Windowed cosines and sines 40 Hz apart, from 40 Hz up, [EAR_FEATURES, 2 * RING_HOP]."""
    at = np.arange(2 * comb.RING_HOP) - comb.RING_HOP + 0.5
    window = 0.5 + 0.5 * np.cos(np.pi * at / comb.RING_HOP)
    turn = 2 * np.pi * 40.0 * np.arange(1, EAR_FEATURES // 2 + 1)[:, None] * at / comb.SAMPLE_RATE
    return torch.from_numpy(np.concatenate([window * np.cos(turn), window * np.sin(turn)])).float() / 30


# Ring frames around a pin's, and where codec's three groups of taps take each.
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
    ringing = functional.pad(bands[0].T, (0, 0, 3, 6))
    columns = [ringing[3 + shift : 3 + shift + 2 * frames : 2] for shift in _TAPS]
    return torch.cat(columns, dim=1), torch.from_numpy(audible(sheet))


def audible(sheet: Array) -> Array:
    """The pins that can be heard: a stop only where a melody note sounds."""
    heard = sheet.copy()
    heard[:, list(barrel.STOPS)] *= np.max(sheet[:, list(barrel.MELODY)], axis=1, keepdims=True) / np.float32(PIN)
    return heard
