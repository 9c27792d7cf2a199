"""ACE-Step 1.5 at its full size with random weights: they generate noise at the speed of music."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AceStepTransformer1DModel, AutoencoderOobleck, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from transformers import Qwen3Config, Qwen3Model

from gpu_worker.engine.ace_step.pipeline import SongPipeline
from tests.tiny_checkpoint import byte_tokenizer

# Qwen3-0.6B, which the checkpoint takes its text encoder from.
_TEXT: Final[dict[str, Any]] = {
    "vocab_size": 151_936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
# Qwen3-1.7B with 64,000 audio codes: ACE-Step's planner of the middle size.
PLANNER: Final[dict[str, Any]] = {**_TEXT, "vocab_size": 217_204, "hidden_size": 2048, "intermediate_size": 6144}
PLANNER_CODES: Final = 64_000
_VAE: Final[dict[str, Any]] = {"downsampling_ratios": [2, 4, 4, 6, 10], "sampling_rate": 48_000}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What each part is made with, in place of its class's defaults."""

    transformer: Mapping[str, Any]
    text: Mapping[str, Any]
    vae: Mapping[str, Any]
    conditions: Mapping[str, Any]


# diffusers' defaults are the 2B model's. XL: the sizes that others who run it give.
TRANSFORMERS: Final[dict[str, dict[str, Any]]] = {
    "turbo": {},
    "xl": {
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "intermediate_size": 9728,
        "num_attention_heads": 32,
        "encoder_hidden_size": 2048,
    },
}
SIZES: Final = {name: Sizes(transformer, _TEXT, _VAE, {}) for name, transformer in TRANSFORMERS.items()}


def build(directory: Path, sizes: Sizes, device: str) -> Path:
    """Write the checkpoint in bf16, without the parts that only covers use, unless it is there; answers `directory`."""
    if not (directory / "model_index.json").exists():
        assemble(sizes, device).save_pretrained(directory, safe_serialization=True)
    return directory


def assemble(sizes: Sizes, device: str) -> SongPipeline:
    """The pipeline in bf16, its weights random and on this device (`meta`: without any)."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return SongPipeline(
                tokenizer=byte_tokenizer(),
                scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
                vae=AutoencoderOobleck(**sizes.vae),
                text_encoder=Qwen3Model(Qwen3Config(**sizes.text)),
                transformer=AceStepTransformer1DModel(is_turbo=True, model_version="turbo", **sizes.transformer),
                condition_encoder=AceStepConditionEncoder(**sizes.conditions),
                audio_tokenizer=None,
                audio_token_detokenizer=None,
            )
    finally:
        torch.set_default_dtype(before)
