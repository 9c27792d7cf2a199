"""ACE-Step's own layout to diffusers', in a process of its own: `serinette convert` runs this module.

The original has transformer, condition encoder, audio tokenizer and detokenizer in one state dict under one
config.json, the latents of silence in a file of their own, and decoder and text encoder in the directories beside it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from safetensors import SafetensorError, safe_open
from transformers import AutoModel, AutoTokenizer

from gpu_worker.engine.checkpoints.downloading import publish
from serinette.errors import ConfigurationError

log = logging.getLogger(__name__)

TEXT_ENCODER, DECODER, SILENCE = "Qwen3-Embedding-0.6B", "vae", "silence_latent.pt"
# Where each part's tensors stand in the original, by the beginning of their names.
_PARTS: Mapping[str, tuple[str, type[Any]]] = {
    "transformer": ("decoder.", AceStepTransformer1DModel),
    "condition_encoder": ("encoder.", AceStepConditionEncoder),
    "audio_tokenizer": ("tokenizer.", AceStepAudioTokenizer),
    "audio_token_detokenizer": ("detokenizer.", AceStepAudioTokenDetokenizer),
}
_NO_GUIDANCE = "null_condition_emb"
# The original's names of layers, as Qwen3 has them, and diffusers'.
_RENAMED = (
    (re.compile(r"\b([qkv])_proj\b"), r"to_\1"),
    (re.compile(r"\bo_proj\b"), "to_out.0"),
    (re.compile(r"\b([qk])_norm\b"), r"norm_\1"),
    (re.compile(r"\b(proj_in|proj_out)\.1\b"), r"\1_conv"),
)
# What the original's quantizer computes from its levels, and some versions of it save.
_COMPUTED = re.compile(r"quantizer\.(layers\.|rvqs\.|scales$|.*(_levels|_basis|implicit_codebook)$)")


def convert(source: Path, out: Path, *, variant: str | None = None, parts: Path | None = None) -> Path:
    """Write the checkpoint in `source` to the new directory `out`, in diffusers' layout; answers `out`.

    `source` holds one checkpoint, or several of which `variant` is one; `parts` is where decoder and text encoder
    lie, if not beside it.

    Raises:
        ConfigurationError: something is missing, is no checkpoint of ACE-Step 1.5, or `out` is there already.
    """
    if out.exists():
        raise ConfigurationError(f"{out}: is there already; name a directory that is not")
    checkpoint = _checkpoint(source, variant)
    beside = parts or (source if checkpoint != source else source.parent)
    for name in (DECODER, TEXT_ENCODER):
        if not (beside / name / "config.json").is_file():
            raise ConfigurationError(
                f"{beside / name}: is not there; download ACE-Step's main repository too, and name it with --parts"
            )
    try:
        return publish(out, partial(_write, checkpoint, beside))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0][:300]
        raise ConfigurationError(f"{checkpoint}: cannot be converted: {reason}") from error


def is_original(directory: Path) -> bool:
    """Whether a checkpoint in ACE-Step's own layout is here, or in a directory below."""
    return bool(_found(directory))


def _found(directory: Path) -> list[Path]:
    below = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
    return [path for path in (directory, *below) if (path / SILENCE).is_file() and (path / "config.json").is_file()]


def _checkpoint(source: Path, variant: str | None) -> Path:
    found = _found(source)
    names = ", ".join(path.name for path in found)
    if variant is not None:
        found = [path for path in found if path.name == variant]
    if len(found) == 1:
        return found[0]
    if names:
        raise ConfigurationError(f"{source}: choose one of its checkpoints with --variant: {names}")
    raise ConfigurationError(
        f"{source}: holds no checkpoint in ACE-Step's layout, which is a directory with config.json, *.safetensors and "
        f"{SILENCE}"
    )


def _write(checkpoint: Path, beside: Path, out: Path) -> None:
    given = json.loads((checkpoint / "config.json").read_text())
    config = {name: value for name, value in given.items() if value is not None}
    modules = {name: _module(checkpoint, config, *part) for name, part in _PARTS.items()}
    pipeline = AceStepPipeline(
        vae=AutoencoderOobleck.from_pretrained(beside / DECODER, use_safetensors=True, local_files_only=True),
        text_encoder=AutoModel.from_pretrained(
            beside / TEXT_ENCODER, use_safetensors=True, local_files_only=True, dtype="auto"
        ),
        tokenizer=AutoTokenizer.from_pretrained(beside / TEXT_ENCODER, local_files_only=True),
        # The pipeline computes its schedule itself, in 0 to 1, and wants it taken as it is.
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        **modules,
    )
    pipeline.save_pretrained(out, safe_serialization=True)


def _module(checkpoint: Path, config: Mapping[str, Any], prefix: str, kind: type[Any]) -> Any:  # noqa: ANN401  # diffusers ships no types
    tensors = dict(_tensors(checkpoint, prefix, kind))
    if not tensors:
        log.warning("%s: has nothing under %s; the part is left out", checkpoint, prefix)
        return None
    taken = inspect.signature(kind.__init__).parameters
    asked = {name: value for name, value in config.items() if name in taken}
    if kind is AceStepTransformer1DModel:
        asked["encoder_hidden_size"] = tensors["condition_embedder.weight"].shape[1]
        asked["is_turbo"] = bool(config.get("is_turbo"))
    else:
        # XL gives its encoders' sizes apart, as its transformer is wider; the layers' kinds are the transformer's.
        asked |= {name: config[f"encoder_{name}"] for name in taken if f"encoder_{name}" in config}
        asked.pop("layer_types", None)
    with torch.device("meta"):
        module = kind(**asked)
    module.load_state_dict(tensors, strict=True, assign=True)
    return module


def _tensors(checkpoint: Path, prefix: str, kind: type[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """A part's tensors, under diffusers' names."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no dict
                if name.startswith(prefix) and not _COMPUTED.search(name):
                    yield renamed(name.removeprefix(prefix)), file.get_tensor(name)
                elif kind is AceStepConditionEncoder and name == _NO_GUIDANCE:
                    yield name, file.get_tensor(name)
    if kind is AceStepConditionEncoder:
        # [1, dims, frames] there. The only file of theirs that is pickled: torch reads tensors alone from it.
        silence = torch.load(checkpoint / SILENCE, map_location="cpu", weights_only=True)
        yield "silence_latent", silence.transpose(1, 2).contiguous()


def renamed(name: str) -> str:
    """The original's name of a tensor, as diffusers has it."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def main(arguments: list[str] | None = None) -> int:
    """Convert what the command line names; the exit status."""
    parser = argparse.ArgumentParser(prog="serinette convert", description="ACE-Step's own layout to diffusers'.")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant")
    parser.add_argument("--parts", type=Path)
    asked = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        made = convert(asked.source, asked.out, variant=asked.variant, parts=asked.parts)
    except ConfigurationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    sys.stdout.write(f"{made}: SERINETTE_MODEL={made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
