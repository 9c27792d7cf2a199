"""How much memory a checkpoint of ACE-Step needs, counted before anything is loaded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
from safetensors import safe_open

from gpu_worker.engine.ace_step.pipeline import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS
from gpu_worker.engine.memory.measuring import line_of, square_of, without_memory
from gpu_worker.engine.memory.plan import Curve, Need
from gpu_worker.planner import loading as planners
from gpu_worker.planner.grammar import CAPTION_TOKENS, LYRICS_TOKENS
from serinette.errors import ConfigurationError
from serinette.spec import CODES_PER_S

# Condition tokens of the longest text; timbre adds one.
_PLANNED_PROMPT_TOKENS = 2_048  # longer lyrics are rare, and a batch that they make overflow is halved
_PLANNED_TOKENS = CAPTION_TOKENS + LYRICS_TOKENS
_TOKENS = MAX_TEXT_TOKENS + MAX_LYRIC_TOKENS + 1


def need_of(directory: Path, dtype: torch.dtype, planner: Path | None = None) -> Need:
    """What the checkpoint in `directory`, and a planner beside it, need when they are loaded as `dtype`.

    Raises:
        ConfigurationError: a part of it is missing.
    """
    try:
        need = _need_of(directory, dtype, planner)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(f"{directory}: is not whole ({error!r}); fetch it again") from error
    return need if planner is None else _beside(need, planners.need_of(planner, dtype))


def _beside(need: Need, planner: planners.Need) -> Need:
    """With a planner that stays on the device, and that works before the denoising: the larger of the two counts."""
    halved = 2 if need.guidance else 1  # what a song takes is doubled for guidance, which the planner's has already
    alone = planner.working_bytes(1, _PLANNED_PROMPT_TOKENS, _PLANNED_TOKENS)
    per_frame = 2 * planner.cache_bytes_per_token * CODES_PER_S / need.frames_per_s
    return replace(
        need,
        weights_bytes=need.weights_bytes + planner.weights_bytes,
        largest_part_bytes=need.largest_part_bytes + planner.weights_bytes,
        steps=(*need.steps, Curve(alone / halved, per_frame / halved)),
    )


def _need_of(directory: Path, dtype: torch.dtype, planner: Path | None) -> Need:
    parts = [path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")]
    parts = [path for path in parts if path != planner]
    sizes = [_weights_bytes(part, dtype) for part in parts]
    transformer, vae = (json.loads((directory / part / "config.json").read_text()) for part in ("transformer", "vae"))
    frames_per_s = vae["sampling_rate"] / math.prod(vae["downsampling_ratios"])
    return Need(
        weights_bytes=sum(sizes),
        largest_part_bytes=max(sizes, default=0),
        steps=transformer_curves(transformer, dtype),
        decoder=decoder_line(vae, dtype),
        frames_per_s=frames_per_s,
        max_duration_s=_longest_frames(directory) / frames_per_s,
        guidance=not transformer.get("is_turbo"),
    )


def _longest_frames(directory: Path) -> int:
    """As many as the silence that the pipeline starts from has."""
    for path in (directory / "condition_encoder").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if "silence_latent" in file.keys():  # noqa: SIM118  # no dict
                return int(file.get_slice("silence_latent").get_shape()[1])
    raise ConfigurationError(f"{directory}: its condition encoder has no silence_latent; fetch it again")


def _weights_bytes(part: Path, dtype: torch.dtype) -> int:
    numbers = 0
    for path in part.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            # A norm is folded into its weight at the load.
            names = [name for name in file.keys() if not name.endswith("weight_g")]  # noqa: SIM118  # no dict
            numbers += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return numbers * dtype.itemsize


def transformer_curves(config: Mapping[str, Any], dtype: torch.dtype) -> tuple[Curve, ...]:
    """A song's share of a denoising step, without weights and guidance: in all of it, and in the midst of attention.

    Attention is counted as torch does it where no fused kernel takes it: with a matrix of the song's length squared.
    One block of each kind stands for all, as each gives back what it took, but for the keys and values of the longest
    text, which are kept for all from a song's first step to its last.
    """
    with without_memory(dtype):
        # Of a kind each, as diffusers alternates them.
        module = AceStepTransformer1DModel.from_config(config, num_hidden_layers=2, layer_types=None).eval()
        latents = module.config.audio_acoustic_hidden_dim
        width = module.condition_embedder.in_features

        def step(frames: int) -> object:
            time = torch.empty(1)
            return module(
                torch.empty(1, frames, latents),
                time,
                time,
                torch.empty(1, _TOKENS, width),
                torch.empty(1, frames, module.config.in_channels - latents),
                return_dict=False,
            )

        curves = line_of(step), square_of(step)
    cross = module.layers[0].cross_attn
    text_bytes = 2 * int(config["num_hidden_layers"]) * int(cross.kv_heads * cross.head_dim) * _TOKENS * dtype.itemsize
    return tuple(replace(curve, fixed=curve.fixed + text_bytes) for curve in curves)


def decoder_line(config: Mapping[str, Any], dtype: torch.dtype) -> Curve:
    """Decoding one window of a song, without weights."""
    with without_memory(dtype):
        vae = AutoencoderOobleck.from_config(config).eval()
        return line_of(lambda frames: vae.decoder(torch.empty(1, vae.config.decoder_input_channels, frames)))
