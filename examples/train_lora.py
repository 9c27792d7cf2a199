"""Train a LoRA on songs of one's own, with the worker's image: docs/lora.md. One file, so that it can be an input.

    python train_lora.py --inputs songs --outputs ours --caption "a tune of ours, 120 bpm, C major"

The checkpoint is the worker's: SERINETTE_MODEL, SERINETTE_DEVICE, SERINETTE_WORK_DIR and the like are read. Flow
matching on cuts of the songs, beside a frozen checkpoint; layers, scaling and files are PEFT's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from pydantic import ValidationError
from torch import Tensor

from gpu_worker.engine.ace_step import sampling, tasks
from gpu_worker.engine.ace_step.pipeline import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, SongPipeline
from gpu_worker.engine.checkpoints.locating import locate
from gpu_worker.engine.loading import device_of
from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE
from gpu_worker.settings import WorkerSettings
from gpu_worker.wire import Samples
from serinette.errors import ConfigurationError, InvalidAudio, StoreUnavailable
from serinette.job import Record
from serinette.media import decode
from serinette.settings import read
from serinette.spec import GenerationSpec

# Less is not one token of the transformer, whose latents come 25 a second, two to a token.
_SHORTEST_S, _LONGEST_S = 0.1, 600.0
# Beside songs: their captions, what a job or an upload left in the store, and this file.
_NO_SONGS = frozenset({".txt", ".json", ".py"})
_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_TIMBRE_S = 30  # of silence, which the pipeline takes where no reference is given
_REPORT_STEPS = 20
_MEASURED_CUTS = 8  # that the loss before and after is measured on, the same both times


@dataclass(frozen=True, slots=True)
class Song:
    """`samples` are [channels, frames] at the checkpoint's rate; `spec` is what would be asked for to generate it."""

    name: str
    spec: GenerationSpec
    samples: Samples


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train. A step is `batch` cuts, of `cut_s` seconds or the whole song, of one song."""

    steps: int
    rank: int
    rate: float
    batch: int
    cut_s: float
    seed: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """One song as the transformer sees it: latents [frames, dims] and conditions [1, tokens, dims]."""

    latents: Tensor
    conditions: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean squared error of the predicted flow, on the same cuts, times and noise of the songs."""

    before: float
    after: float


def main() -> int:
    """Exit status: 0, or that of a mistake in settings or inputs, which is printed."""
    asked = arguments()
    warnings.simplefilter(
        "ignore", FutureWarning
    )  # diffusers' and torch's to each other; nothing that a reader can change
    plan = Plan(asked.steps, asked.rank, asked.rate, asked.batch, asked.seconds, asked.seed)
    try:
        _run(read(WorkerSettings), plan, asked.inputs, asked.outputs, asked.caption)
    except (ConfigurationError, StoreUnavailable) as error:
        sys.stderr.write(f"{error}\n")
        return CONFIGURATION_EXIT_CODE
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    reader = argparse.ArgumentParser(prog="train_lora.py", description=(__doc__ or "").partition("\n")[0])
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
        print(f"{song.name}: {song.samples.shape[1] / pipe.sample_rate:.1f} s, {song.spec.prompt!r}", flush=True)
    cleaning = {"clean": music_box_pins} if settings.model == "bundled" else {}
    losses = train(pipe, songs, plan, **cleaning)
    save(pipe, plan, checkpoint.name, outputs)
    report = {"model": checkpoint.name, "songs": len(songs), **asdict(plan), "loss": asdict(losses)}
    (outputs / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"loss on the songs: {losses.before:.4f} without the adapter, {losses.after:.4f} with it", flush=True)


def songs_in(directory: Path, sample_rate: int, channels: int, caption: str | None) -> list[Song]:
    """Every song below `directory`. Its words are, in this order: NAME.txt, the spec in job.json beside it, `caption`.

    Raises:
        ConfigurationError: there is no song, or one is no audio, too short or long, or has no words.
    """
    found = list(_songs(directory, sample_rate, channels, caption))
    if not found:
        raise ConfigurationError(f"{directory}: holds no song; give some as the job's inputs")
    return found


def _songs(directory: Path, sample_rate: int, channels: int, caption: str | None) -> Iterator[Song]:
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or path.suffix in _NO_SONGS or path.name.startswith("."):
            continue
        name = path.relative_to(directory).as_posix()
        try:
            samples = decode(path, sample_rate, channels, _LONGEST_S)
        except InvalidAudio as error:
            raise ConfigurationError(f"{name}: {error.message}") from error
        if samples.shape[1] < _SHORTEST_S * sample_rate:
            raise ConfigurationError(f"{name}: is shorter than {_SHORTEST_S:g} s, of which nothing can be learned")
        yield Song(name, _words_of(path, name, caption), samples)


def _words_of(path: Path, name: str, caption: str | None) -> GenerationSpec:
    text, job = path.with_suffix(".txt"), path.with_name("job.json")
    try:
        if text.is_file():
            return GenerationSpec(prompt=text.read_text("utf-8").strip())
        if job.is_file():
            return Record.model_validate_json(job.read_bytes()).spec
        if caption is not None:
            return GenerationSpec(prompt=caption)
    except ValueError as error:  # pydantic's, and text that is no UTF-8
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigurationError(f"{name}: its words cannot be read: {reason}") from error
    raise ConfigurationError(
        f"{name}: has no words; put them into {path.with_suffix('.txt').name} beside it, give the song with its job's "
        "prefix, or say --caption for all that have none"
    )


def music_box_pins(latents: Tensor) -> Tensor:
    """What the bundled checkpoint's transformer is to learn, from its encoder's latents [frames, 32] of a recording.

    Its latents are pins of 0 or 6. The encoder gives them at the recording's level, and channels 29 to 31, which stand
    for the whole song (the melody's instruments), only while a melody note sounds.
    """
    pin, instruments = 6.0, slice(29, 32)
    level = latents[latents > latents.max() / 2].median()
    pins = (latents > level / 2) * pin
    sounding = latents[:, instruments]
    strength = ((sounding > level / 4) * sounding.square()).sum(dim=0)  # below is what one leaks into another
    pins[:, instruments] = (strength > strength.max() / 3) * pin
    return torch.as_tensor(pins, dtype=latents.dtype)


def train(
    pipe: SongPipeline,
    songs: Sequence[Song],
    plan: Plan,
    clean: Callable[[Tensor], Tensor] = lambda latents: latents,
) -> Losses:
    """Train an adapter of `pipe`'s transformer; the same songs, plan and threads on a CPU give the same adapter.

    `clean` makes of the encoder's latents [frames, dims] what the transformer is to learn, where they differ.
    """
    encoded = [_encode(pipe, song, clean) for song in songs]
    for part in (pipe.transformer, pipe.text_encoder, pipe.condition_encoder, pipe.vae):
        part.requires_grad_(False)
    torch.manual_seed(plan.seed)
    pipe.transformer.add_adapter(_config(plan))
    cast_training_params(pipe.transformer, torch.float32)  # bfloat16 would swallow steps of this size
    trained = [tensor for tensor in pipe.transformer.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.rate, weight_decay=0.0)
    before = _measure(pipe, encoded, plan)
    dice, recent = torch.Generator().manual_seed(plan.seed), 0.0
    for step in range(1, plan.steps + 1):
        song = encoded[int(torch.randint(len(encoded), (1,), generator=dice))]
        loss = _loss(pipe, song, plan, plan.batch, dice)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        recent += loss.item()
        if step % _REPORT_STEPS == 0:
            print(f"step {step} of {plan.steps}: loss {recent / _REPORT_STEPS:.4f}", flush=True)
            recent = 0.0
    return Losses(before, _measure(pipe, encoded, plan))


def save(pipe: SongPipeline, plan: Plan, model: str, directory: Path) -> None:
    """Write the adapter in diffusers' names, with PEFT's `adapter_config.json` beside it."""
    SongPipeline.save_lora_weights(directory, get_peft_model_state_dict(pipe.transformer))
    config = _config(plan)
    config.base_model_name_or_path = model
    config.save_pretrained(str(directory))


def _config(plan: Plan) -> LoraConfig:
    # alpha = r: as strong as it was trained for a program that reads the weights alone, too.
    return LoraConfig(r=plan.rank, lora_alpha=plan.rank, target_modules=list(_TARGETS))


@torch.no_grad()
def _encode(pipe: SongPipeline, song: Song, clean: Callable[[Tensor], Tensor]) -> Encoded:
    """Latents from the checkpoint's own encoder, and its words as the pipeline gives them to the transformer."""
    device, vae = pipe.transformer.device, pipe.vae
    whole = song.samples.shape[1] // vae.hop_length * vae.hop_length
    samples = torch.from_numpy(song.samples[:, :whole])[None].to(device, vae.dtype)
    latents = clean(vae.encode(samples).latent_dist.mode()[0].T.float())
    metadata: dict[str, Any] = tasks.metadata_of(song.spec, whole / pipe.sample_rate)
    text, text_mask, lyrics, lyrics_mask = pipe.encode_prompt(
        prompt=[song.spec.prompt],
        lyrics=[tasks.lyrics_of(song.spec)],
        device=device,
        vocal_language=[tasks.language_of(song.spec)],
        instruction=pipe._get_task_instruction("text2music"),
        max_text_length=MAX_TEXT_TOKENS,
        max_lyric_length=MAX_LYRIC_TOKENS,
        **metadata,
    )
    silence = pipe.condition_encoder.silence_latent[:, : int(_TIMBRE_S * pipe.latents_per_second)]
    conditions, _ = pipe.condition_encoder(
        text_hidden_states=text,
        text_attention_mask=text_mask,
        lyric_hidden_states=lyrics,
        lyric_attention_mask=lyrics_mask,
        refer_audio_acoustic_hidden_states_packed=silence.to(device, text.dtype),
        refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=device),
    )
    return Encoded(latents, conditions)


def _loss(pipe: SongPipeline, song: Encoded, plan: Plan, cuts: int, dice: torch.Generator) -> Tensor:
    """Squared error of the predicted flow, noise minus latents, at times that the sampler's schedule looks at."""
    transformer, device = pipe.transformer, song.latents.device
    patch = transformer.config.patch_size
    frames = min(len(song.latents), max(1, round(plan.cut_s * pipe.latents_per_second / patch)) * patch)
    starts = torch.randint((len(song.latents) - frames) // patch + 1, (cuts,), generator=dice) * patch
    spans = [slice(start, start + frames) for start in starts.tolist()]
    answer = torch.stack([song.latents[span] for span in spans])
    silence = pipe.condition_encoder.silence_latent[0].to(device, answer.dtype)
    context = torch.stack([silence[span] for span in spans])
    # On the CPU, so that every device draws the same.
    noise = torch.randn(answer.shape, generator=dice).to(device)
    drawn = torch.rand(cuts, generator=dice).to(device)
    shift = (sampling.TURBO if pipe.is_turbo else sampling.BASE).shift
    time = shift * drawn / (1 + (shift - 1) * drawn)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        flow = transformer(
            torch.lerp(answer, noise, time[:, None, None]),
            time,
            time,
            song.conditions.expand(cuts, -1, -1),
            torch.cat([context, torch.ones_like(context)], dim=-1),
            return_dict=False,
        )[0]
    loss: Tensor = (flow.float() - (noise - answer)).square().mean()
    return loss


@torch.no_grad()
def _measure(pipe: SongPipeline, songs: Sequence[Encoded], plan: Plan) -> float:
    dice = torch.Generator().manual_seed(plan.seed + 1)
    return sum(_loss(pipe, song, plan, _MEASURED_CUTS, dice).item() for song in songs) / len(songs)


if __name__ == "__main__":
    sys.exit(main())
