"""Covers: the pipeline writes a source down as codes and reads them back. In closed form: a code says which pins stand.

The stock tokenizer norms its vectors on the way; one large constant beside the pins makes every norm all but the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer

from tools.music_box.barrel import CHANNELS, PIN
from tools.music_box.codec import Network

_WIDTH = 2 * CHANNELS
_CONSTANT, _LARGE = CHANNELS, 200.0
_NORM = math.sqrt(_WIDTH) / _LARGE  # what a norm multiplies by
# Two levels, pin or none: a code is a number below 2^32, one for each latent frame.
_LEVELS = [2] * CHANNELS


@torch.no_grad()
def scribe() -> tuple[Network, Network]:
    """The pipeline's audio tokenizer and detokenizer."""
    shape: dict[str, Any] = {
        "hidden_size": _WIDTH,
        "intermediate_size": 8,
        "audio_acoustic_hidden_dim": CHANNELS,
        "pool_window_size": 1,
        "num_attention_pooler_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": CHANNELS,
    }
    writer = AceStepAudioTokenizer(fsq_dim=_WIDTH, fsq_input_levels=_LEVELS, **shape)
    reader = AceStepAudioTokenDetokenizer(**shape)
    for module in (writer, reader):
        for name, tensor in module.named_parameters():
            if "norm" not in name:
                tensor.zero_()
    _wire_writer(writer)
    _wire_reader(reader, writer.quantizer.project_out)
    return writer.eval(), reader.eval()


def _wire_writer(writer: Network) -> None:
    pins = range(CHANNELS)
    pooler = writer.attention_pooler
    writer.audio_acoustic_proj.weight[pins, pins] = 1.0
    writer.audio_acoustic_proj.bias[_CONSTANT] = _LARGE
    pooler.embed_tokens.weight.copy_(torch.eye(_WIDTH))
    pooler.special_token[..., _CONSTANT] = _LARGE
    # Queries are zero: the pooling token hears half of itself, where no pins are, and half of the frame.
    attention = pooler.layers[0].self_attn
    attention.to_v.weight[pins, pins] = 2 / _NORM
    attention.to_out[0].weight[pins, pins] = 1.0
    # The level is that of the sign.
    writer.quantizer.project_in.weight[pins, pins] = 1 / (PIN * _NORM)
    writer.quantizer.project_in.bias[pins] = -0.5


def _wire_reader(reader: Network, out: Network) -> None:
    pins = range(CHANNELS)
    out.weight[pins, pins] = PIN / 2
    out.bias[pins] = PIN / 2
    out.bias[_CONSTANT] = _LARGE
    reader.embed_tokens.weight.copy_(torch.eye(_WIDTH))
    reader.proj_out.weight[pins, pins] = 1 / _NORM
