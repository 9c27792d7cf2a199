"""The bundled checkpoint from a training run: trained parts, and whatever can be computed, computed, in one archive.

python -m tools.music_box.packing RUN_DIRECTORY
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gpu_worker.bundled import ARCHIVE
from tools.music_box import codec, model, scribe, wiring, words
from tools.music_box.codec import Network

_EMBEDDING = "text_encoder.embed_tokens.weight"


def main() -> None:
    """Pack; finding the encoder's inverse takes half a minute, and so does compressing."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("directory", type=Path)
    reader.add_argument("--out", type=Path, default=ARCHIVE)
    asked = reader.parse_args()
    run = torch.load(asked.directory / "run.pt", weights_only=True, map_location="cpu")
    write(pipeline(run["average"], codec.inverse()), asked.out)
    size_mb = asked.out.stat().st_size / 1e6
    print(f"{asked.out}: {size_mb:.1f} MB, after {run['step']} steps in {run['spent_s'] / 60:.0f} min")


def pipeline(trained: dict[str, Tensor], ear: Tensor) -> Network:
    """The pipeline in memory, of `Parts.trained` and the encoder's inverse. Numbers are rounded to 16 bits, of which
    half the bytes compress to nothing.
    """
    rounded = {name: tensor.detach().to(torch.float16).float() for name, tensor in trained.items()}
    rounded[_EMBEDDING] = rounded[_EMBEDDING][words.meaning_of_tokens()]
    rounded[_EMBEDDING][:, wiring.FAINT] = torch.tensor(words.faintness_of_tokens())
    parts = model.parts(len(words.meaning_of_tokens()))
    for name, module in parts.modules().items():
        _load(module, {key: tensor for key, tensor in rounded.items() if key.startswith(f"{name}.")}, name)
    writer, reader = scribe.scribe()
    return AceStepPipeline(
        vae=codec.autoencoder(ear.to(torch.float16).float()),
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
        raise RuntimeError(f"{name}: the run lacks {left} and has {unexpected}; train the music box again")


def write(made: Network, archive: Path) -> None:
    """Write a checkpoint in diffusers' layout as one archive; the same bytes for the same pipeline."""
    with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        made.save_pretrained(directory, safe_serialization=True)
        for path in sorted(path for path in Path(directory).rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(directory).as_posix())
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            file.writestr(entry, path.read_bytes(), compresslevel=9)


def load(archive: Path = ARCHIVE) -> AceStepPipeline:
    """The pipeline in memory, from an archive."""
    with tempfile.TemporaryDirectory() as directory:
        zipfile.ZipFile(archive).extractall(directory)
        made: AceStepPipeline = AceStepPipeline.from_pretrained(directory, use_safetensors=True, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


if __name__ == "__main__":
    main()
