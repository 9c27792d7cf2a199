"""The least time that a card's arithmetic allows: pure, from the model's sizes and the card's published peaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Card:
    """Peaks from the vendor's data sheet: dense bf16 arithmetic and memory, a second."""

    flop_per_s: float
    bytes_per_s: float


# By a part of the name that CUDA gives. NVIDIA's data sheets, SXM parts, without sparsity.
CARDS: Final[dict[str, Card]] = {
    "H200": Card(989e12, 4.8e12),
    "H100": Card(989e12, 3.35e12),
    "A100": Card(312e12, 2.0e12),
    "L40S": Card(362e12, 0.864e12),
}
# Of one audio second through the Oobleck decoder at ACE-Step's sizes: torch's FlopCounterMode on the meta device.
_DECODE_FLOP_PER_AUDIO_S: Final = 0.122e12
BF16_BYTES: Final = 2


def card(name: str) -> Card | None:
    """The card whose name CUDA gives; None for one whose peaks are not listed."""
    return next((peaks for part, peaks in CARDS.items() if part in name), None)


@dataclass(frozen=True, slots=True)
class Batch:
    """Songs that are generated together."""

    songs: int
    duration_s: float
    steps: int
    text_tokens: int = 300


def step_flop(config: Mapping[str, Any], duration_s: float, text_tokens: int) -> float:
    """Floating-point operations of one denoising step of one song.

    With n = 12.5 tokens a second, L layers, width h, MLP f, query and key widths q and k, e text tokens:
    2nL(4hq + 2hk + 3hf) + 4eLhk + 4n²qL + 4neqL: projections of self- and cross-attention and the MLP, keys and
    values of the text, both attentions.
    """
    tokens = duration_s * 25.0 / config["patch_size"]
    layers, width, mlp = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
    query, key = (config[f"num_{heads}_heads"] * config["head_dim"] for heads in ("attention", "key_value"))
    linear = 2 * tokens * layers * (4 * width * query + 2 * width * key + 3 * width * mlp)
    text = 4 * text_tokens * layers * width * key
    attention = 4 * tokens * (tokens + text_tokens) * query * layers
    return float(linear + text + attention)


def denoise_floor_s(config: Mapping[str, Any], weights: int, peaks: Card, batch: Batch) -> float:
    """Seconds that denoising takes at the least: each step its arithmetic, or one reading of all weights in bf16."""
    arithmetic_s = batch.songs * step_flop(config, batch.duration_s, batch.text_tokens) / peaks.flop_per_s
    return batch.steps * max(arithmetic_s, weights * BF16_BYTES / peaks.bytes_per_s)


def decode_floor_s(peaks: Card, batch: Batch) -> float:
    """Seconds that decoding takes at the least, by its arithmetic."""
    return batch.songs * batch.duration_s * _DECODE_FLOP_PER_AUDIO_S / peaks.flop_per_s
