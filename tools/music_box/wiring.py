"""What need not be learned: the first weights, in closed form where the arithmetic is known beforehand.

The residual stream of the transformer holds, side by side, the noisy pins of a patch, what the barrel's ruling says of
it, and what the text says. The first layer picks from the ruling the lines of the asked tempo: its cross-attention
fetches the tempo, its MLP multiplies each line by whether its tempo is the one. Composing is left to training.
The wired parts stay as they are: trained along, they were worn away before anything had learned to use them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tools.music_box import words
from tools.music_box.barrel import CHANNELS, PATCH, TEMPI
from tools.music_box.codec import Network

FEATURES = 64

_KINDS: dict[str, tuple[str, ...]] = {
    "task": tuple(words.TASKS),
    "track": tuple(words.TRACKS),
    "instrument": tuple(words.INSTRUMENTS),
    "mood": tuple(words.MOODS),
}
_TOOTH, _PACE, _TONIC, _MODE = range(TEMPI), range(21, 23), range(23, 35), range(35, 37)
_MOOD, _INSTRUMENT, _TRACK, _TASK, _END = range(37, 41), range(41, 44), range(44, 47), range(47, 53), 53
FAINT = 54  # how faintly a word is said: the louder of two tempi is heard
_FAINT_KIND, _FAINTER = 5, 5.0

_PINS = range(PATCH * CHANNELS)
_RULED = range(_PINS.stop, 2 * PATCH * CHANNELS)
_ONE, _FREE = _RULED.stop, _RULED.stop + 1
_TEXT = range(_RULED.stop + 2, _RULED.stop + 2 + _END)  # the text's features, fetched
_LINES = range(_TEXT.stop, _TEXT.stop + PATCH + 2)  # the tempo's own: a mark for each frame, the phrase's two
HIDDEN = 320
assert _LINES.stop <= HIDDEN  # noqa: S101 - a mistake of ours, found at import

# Each head of the first cross-attention fetches one kind of word.
_HEADS = (_TOOTH.start, _TONIC.start, _MOOD.start, _INSTRUMENT.start)
_FETCHED = (range(23), range(23, 37), _MOOD, _INSTRUMENT)
_FIXED = ("proj_in_conv", "condition_embedder", "layers.0.")  # of the transformer
_RMS = 0.75  # of the residual stream at the start, about


def embedding() -> Tensor:
    """The features of each meaning, [meanings, FEATURES]."""
    table = torch.zeros(len(words.MEANINGS), FEATURES)
    for meaning, place in words.PLACE.items():
        for feature in _features(meaning):
            table[place, feature] = 1.0
    return table


def _features(meaning: str) -> tuple[int, ...]:
    kind, *rest = meaning.split(" ")
    if kind == "tempo":
        return _TOOTH[int(rest[0])], _PACE[rest[1] == "slow"]
    if kind == "key":
        return _TONIC[int(rest[0])], _MODE[rest[1] == "minor"]
    for name, places in (("mood", _MOOD), ("instrument", _INSTRUMENT), ("track", _TRACK), ("task", _TASK)):
        if meaning in _KINDS[name]:
            return (places[_KINDS[name].index(meaning)],)
    return (_END,)


@torch.no_grad()
def wire(text_encoder: Network, condition_encoder: Network, transformer: Network) -> None:
    """Set the first weights."""
    text_encoder.embed_tokens.weight.copy_(embedding())
    for layer in text_encoder.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    _diagonal(condition_encoder.text_projector, 1 / 5.66)  # two of 64 features, normed, are 5.66
    _diagonal(transformer.condition_embedder, 1.0)
    _calm(transformer)
    _write_ends(transformer)
    transformer.layers[0].self_attn.to_out[0].weight.zero_()
    _fetch(transformer.layers[0].cross_attn)
    _choose(transformer.layers[0].mlp)
    _fix(text_encoder, condition_encoder, transformer)


def _fix(text_encoder: Network, condition_encoder: Network, transformer: Network) -> None:
    """Take the wired parts out of training, and keep the timestep from moving what they read."""
    fixed = [*text_encoder.parameters(), *condition_encoder.parameters()]
    fixed += [tensor for name, tensor in transformer.named_parameters() if name.startswith(_FIXED)]
    for tensor in fixed:
        tensor.requires_grad_(False)
    moved = torch.zeros(HIDDEN)
    moved[: _PINS.stop] = 1.0
    moved[_LINES.stop :] = 1.0
    for embed in (transformer.time_embed, transformer.time_embed_r):
        for tensor in embed.time_proj.parameters():
            rows = moved.repeat(6).view(-1, *[1] * (tensor.ndim - 1))
            tensor.register_hook(lambda gradient, rows=rows: gradient * rows.to(gradient.device))


def _diagonal(linear: nn.Linear, value: float) -> None:
    linear.weight.zero_()
    linear.weight[range(FEATURES), range(FEATURES)] = value
    if linear.bias is not None:
        linear.bias.zero_()


def _calm(transformer: Network) -> None:
    """Open gates, no modulation, small branches: the stock start all but closes the gates, and they open slowly."""
    for embed in (transformer.time_embed, transformer.time_embed_r):
        embed.linear_2.weight.mul_(0.2)
        embed.time_proj.weight.zero_()
        embed.time_proj.bias.zero_()
    transformer.scale_shift_table.zero_()
    for layer in transformer.layers:
        layer.scale_shift_table.zero_()
        layer.scale_shift_table[:, [2, 5]] = 1.0
        for linear in (layer.self_attn.to_out[0], layer.cross_attn.to_out[0], layer.mlp.down_proj):
            linear.weight.mul_(0.3)


def _write_ends(transformer: Network) -> None:
    """Pins and ruling in, each to a place of its own; pins out, which at first is the noise's best guess."""
    into, out = transformer.proj_in_conv, transformer.proj_out_conv
    for tensor in (into.weight, into.bias, out.weight, out.bias):
        tensor.zero_()
    for frame in range(PATCH):
        for channel in range(CHANNELS):
            place = frame * CHANNELS + channel
            into.weight[_PINS[place], 2 * CHANNELS + channel, frame] = 1.0
            into.weight[_RULED[place], channel, frame] = 1.0
            out.weight[_PINS[place], channel, frame] = _RMS
        into.weight[_FREE, CHANNELS, frame] = 1 / PATCH
    into.bias[_ONE] = 1.0


def _fetch(attention: Network) -> None:
    """Each head looks for its kind of word; keys name the kind, values are the features."""
    head = attention.head_dim
    for linear in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
        linear.weight.zero_()
    for group in range(attention.kv_heads):
        attention.to_v.weight[group * head : group * head + FEATURES, :FEATURES] = torch.eye(FEATURES)
        for kind, features in enumerate((_TOOTH, _TONIC, _MOOD, _INSTRUMENT, (*_TRACK, *_TASK, _END))):
            attention.to_k.weight[group * head + kind, list(features)] = 1.0
        # Keys are normed: what else they hold takes from the kind, and from the head's attention.
        attention.to_k.weight[group * head + _FAINT_KIND, FAINT] = _FAINTER
    for number, features in enumerate(_FETCHED):
        attention.to_q.weight[number * head + number, _ONE] = 1.0
        for feature in features:
            attention.to_out[0].weight[_TEXT[feature], number * head + feature] = 2.0


def _choose(mlp: Network) -> None:
    """For each tempo and line a neuron: open if the tempo is asked, and then what the line says."""
    for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        linear.weight.zero_()
    neuron = 0
    for tooth in range(TEMPI):
        for line, ruled in enumerate(_lines_of(tooth)):
            mlp.gate_proj.weight[neuron, _TEXT[tooth]] = 4.0
            mlp.gate_proj.weight[neuron, _ONE] = -4.0
            mlp.up_proj.weight[neuron, _RULED[ruled]] = 1.0
            mlp.down_proj.weight[_LINES[line], neuron] = 0.3
            neuron += 1


def _lines_of(tooth: int) -> list[int]:
    """Where a patch of the ruling marks a tempo: its mark in each frame, its phrase's cosine and sine."""
    spare = CHANNELS - TEMPI
    phrase = [divmod(2 * tooth + part, spare) for part in range(2)]
    return [frame * CHANNELS + tooth for frame in range(PATCH)] + [
        frame * CHANNELS + TEMPI + place for frame, place in phrase
    ]
