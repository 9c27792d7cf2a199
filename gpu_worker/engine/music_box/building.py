"""The checkpoint from the weights file: a directory that `from_pretrained` loads like any other."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from torch import Tensor

from gpu_worker.engine.music_box import codec, model, scribe, wiring, words
from gpu_worker.engine.music_box.codec import Network
from gpu_worker.engine.pipeline import SongPipeline

WEIGHTS = Path(__file__).with_name("weights.safetensors")
_EMBEDDING = "text_encoder.embed_tokens.weight"


def build(directory: Path, weights: Path = WEIGHTS) -> None:
    """Write the checkpoint into `directory`: 32-bit floats, and whatever can be computed, computed.

    Raises:
        OSError: the directory cannot be written.
    """
    pipeline(load_file(weights)).save_pretrained(directory, safe_serialization=True)


def load(weights: Path = WEIGHTS) -> SongPipeline:
    """The pipeline in memory, for measuring it.

    Raises:
        OSError: the weights cannot be read.
    """
    made = pipeline(load_file(weights))
    made.set_progress_bar_config(disable=True)
    return made


def pipeline(weights: dict[str, Tensor]) -> SongPipeline:
    """The pipeline in memory."""
    weights = {name: tensor.float() for name, tensor in weights.items()}
    spelled = dict(weights)
    spelled[_EMBEDDING] = weights[_EMBEDDING][words.meaning_of_tokens()]
    spelled[_EMBEDDING][:, wiring.FAINT] = torch.tensor(words.faintness_of_tokens())
    parts = model.parts(len(words.meaning_of_tokens()))
    for name, module in parts.modules().items():
        _load(module, {key: tensor for key, tensor in spelled.items() if key.startswith(f"{name}.")}, name)
    writer, reader = scribe.scribe()
    return SongPipeline(
        vae=codec.autoencoder(weights["ear"]),
        tokenizer=words.tokenizer(),
        # The pipeline computes its schedule itself, in 0 to 1, and wants it taken as it is.
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=writer,
        audio_token_detokenizer=reader,
        **{name: module.eval() for name, module in parts.modules().items()},
    )


def _load(module: Network, tensors: dict[str, Tensor], name: str) -> None:
    missing, unexpected = module.load_state_dict(
        {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items()}, strict=False
    )
    computed = ("lyric_encoder", "timbre_encoder", "silence_latent")
    left = [key for key in missing if not any(part in key for part in computed)]
    if left or unexpected:
        raise RuntimeError(f"{name}: the weights file lacks {left} and has {unexpected}; train the music box again")


def pack(average: dict[str, Tensor], listened: Tensor) -> dict[str, Tensor]:
    """What the weights file holds, in 16 bits: the trained parts and the ear."""
    return {
        name: tensor.detach().to(torch.float16).contiguous() for name, tensor in {**average, "ear": listened}.items()
    }
