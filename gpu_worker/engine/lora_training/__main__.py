"""Train a LoRA on songs, as a container does: `python -m gpu_worker.engine.lora_training` (docs/lora.md).

The checkpoint is the worker's: SERINETTE_MODEL, SERINETTE_DEVICE, SERINETTE_WORK_DIR and the like are read.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import diffusers
import torch
import transformers

from gpu_worker.engine.loading import device_of, locate
from gpu_worker.engine.lora_training.songs import songs_in
from gpu_worker.engine.lora_training.training import Plan, save, train
from gpu_worker.engine.music_box.pinning import pinned
from gpu_worker.engine.pipeline import SongPipeline
from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError, StoreUnavailable
from serinette.settings import read


def main() -> int:
    """Exit status: 0, or that of a mistake in settings or inputs, told in words."""
    told = arguments()
    warnings.simplefilter("ignore", FutureWarning)  # diffusers' and torch's to each other; nothing a reader can mend
    plan = Plan(told.steps, told.rank, told.rate, told.batch, told.seconds, told.seed)
    try:
        _run(read(WorkerSettings), plan, told.inputs, told.outputs, told.caption)
    except (ConfigurationError, StoreUnavailable) as error:
        sys.stderr.write(f"{error}\n")
        return CONFIGURATION_EXIT_CODE
    return 0


def _run(settings: WorkerSettings, plan: Plan, inputs: Path, outputs: Path, caption: str | None) -> None:
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ships no types for it
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = locate(settings)
    pipe = SongPipeline.from_pretrained(checkpoint.directory, use_safetensors=True, local_files_only=True)
    pipe.to(device_of(settings))
    songs = songs_in(inputs, pipe.sample_rate, pipe.vae.config.audio_channels, caption)
    for song in songs:
        _say(f"{song.name}: {song.samples.shape[1] / pipe.sample_rate:.1f} s, {song.spec.prompt!r}")
    cleaning = {"clean": pinned} if settings.model == "bundled" else {}
    losses = train(pipe, songs, plan, _say, **cleaning)
    save(pipe, plan, checkpoint.name, outputs)
    report = {"model": checkpoint.name, "songs": len(songs), **asdict(plan), "loss": asdict(losses)}
    (outputs / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    _say(f"loss on the songs: {losses.before:.4f} without the adapter, {losses.after:.4f} with it")


def arguments() -> argparse.Namespace:
    """What the command was told."""
    reader = argparse.ArgumentParser(prog="python -m gpu_worker.engine.lora_training", description=__doc__)
    reader.add_argument("--inputs", type=Path, default=Path("/inputs"), help="songs, each with NAME.txt or job.json")
    reader.add_argument("--outputs", type=Path, default=Path("/outputs"), help="where the adapter goes")
    reader.add_argument("--caption", help="words of songs that bring none")
    reader.add_argument("--steps", type=_positive(int), default=200)
    reader.add_argument("--rank", type=_positive(int), default=8)
    reader.add_argument("--rate", type=_positive(float), default=1e-3, help="learning rate")
    reader.add_argument("--batch", type=_positive(int), default=4, help="cuts of a song in a step")
    reader.add_argument("--seconds", type=_positive(float), default=10.0, help="length of a cut")
    reader.add_argument("--seed", type=int, default=0)
    return reader.parse_args()


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number_of(text: str) -> float:
        number = kind(text)
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return number

    return number_of


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command's own output


if __name__ == "__main__":
    sys.exit(main())
