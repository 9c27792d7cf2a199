"""ACE-Step 1.5 at its full size with random weights, which sing noise at the speed of music: weights do not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AceStepTransformer1DModel, AutoencoderOobleck, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from transformers import Qwen3Config, Qwen3Model

from gpu_worker.engine.checkpoint import byte_tokenizer
from gpu_worker.engine.pipeline import SongPipeline

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
_VAE: Final[dict[str, Any]] = {"downsampling_ratios": [2, 4, 4, 6, 10], "sampling_rate": 48_000}


def build(directory: Path, size: str, device: str) -> Path:
    """Write the checkpoint in bf16, without the parts that only covers use, unless it is there; answers `directory`."""
    if (directory / "model_index.json").exists():
        return directory
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            pipe = SongPipeline(
                tokenizer=byte_tokenizer(),
                scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
                vae=AutoencoderOobleck(**_VAE),
                text_encoder=Qwen3Model(Qwen3Config(**_TEXT)),
                transformer=AceStepTransformer1DModel(is_turbo=True, model_version="turbo", **TRANSFORMERS[size]),
                condition_encoder=AceStepConditionEncoder(),
                audio_tokenizer=None,
                audio_token_detokenizer=None,
            )
            pipe.save_pretrained(directory, safe_serialization=True)
    finally:
        torch.set_default_dtype(before)
    return directory
