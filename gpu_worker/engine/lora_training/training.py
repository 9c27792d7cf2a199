"""Train a LoRA beside a frozen checkpoint: flow matching on cuts of songs. Layers, scaling and files are PEFT's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from gpu_worker.engine import sampling, tasks
from gpu_worker.engine.lora_training.songs import Song
from gpu_worker.engine.pipeline import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS, SongPipeline

_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_TIMBRE_S = 30  # of silence, which the pipeline hears where no reference is given
_SAY_EVERY = 20  # steps
_JUDGED_CUTS = 8  # that the loss before and after is measured on, the same both times


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
class Lesson:
    """One song as the transformer sees it: latents [frames, dims] and conditions [1, tokens, dims]."""

    latents: Tensor
    conditions: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean squared error of the predicted flow, on the same cuts, times and noise of the songs."""

    before: float
    after: float


def train(
    pipe: SongPipeline,
    songs: Sequence[Song],
    plan: Plan,
    say: Callable[[str], None],
    clean: Callable[[Tensor], Tensor] = lambda latents: latents,
) -> Losses:
    """Train an adapter of `pipe`'s transformer; the same songs, plan and threads on a CPU give the same adapter.

    `clean` makes of the encoder's latents [frames, dims] what the transformer is to learn, where they differ.
    """
    lessons = [_hear(pipe, song, clean) for song in songs]
    for part in (pipe.transformer, pipe.text_encoder, pipe.condition_encoder, pipe.vae):
        part.requires_grad_(False)
    torch.manual_seed(plan.seed)
    pipe.transformer.add_adapter(_config(plan))
    cast_training_params(pipe.transformer, torch.float32)  # bfloat16 would swallow steps of this size
    trained = [tensor for tensor in pipe.transformer.parameters() if tensor.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.rate, weight_decay=0.0)
    before = _judge(pipe, lessons, plan)
    dice, recent = torch.Generator().manual_seed(plan.seed), 0.0
    for step in range(1, plan.steps + 1):
        lesson = lessons[int(torch.randint(len(lessons), (1,), generator=dice))]
        loss = _loss(pipe, lesson, plan, plan.batch, dice)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        recent += loss.item()
        if step % _SAY_EVERY == 0:
            say(f"step {step} of {plan.steps}: loss {recent / _SAY_EVERY:.4f}")
            recent = 0.0
    return Losses(before, _judge(pipe, lessons, plan))


def save(pipe: SongPipeline, plan: Plan, model: str, directory: Path) -> None:
    """Write the adapter in diffusers' names, with PEFT's `adapter_config.json` beside it."""
    SongPipeline.save_lora_weights(directory, get_peft_model_state_dict(pipe.transformer))
    config = _config(plan)
    config.base_model_name_or_path = model
    config.save_pretrained(str(directory))


def _config(plan: Plan) -> LoraConfig:
    # alpha = r: sung at the strength that it was trained at, whoever reads the weights alone.
    return LoraConfig(r=plan.rank, lora_alpha=plan.rank, target_modules=list(_TARGETS))


@torch.no_grad()
def _hear(pipe: SongPipeline, song: Song, clean: Callable[[Tensor], Tensor]) -> Lesson:
    """Latents from the checkpoint's own ear, and its words as the pipeline tells them to the transformer."""
    device, vae = pipe.transformer.device, pipe.vae
    whole = song.samples.shape[1] // vae.hop_length * vae.hop_length
    samples = torch.from_numpy(song.samples[:, :whole])[None].to(device, vae.dtype)
    latents = clean(vae.encode(samples).latent_dist.mode()[0].T.float())
    told: dict[str, Any] = tasks.metadata_of(song.spec, whole / pipe.sample_rate)
    text, text_mask, lyrics, lyrics_mask = pipe.encode_prompt(
        prompt=[song.spec.prompt],
        lyrics=[tasks.lyrics_of(song.spec)],
        device=device,
        vocal_language=[tasks.language_of(song.spec)],
        instruction=pipe._get_task_instruction("text2music"),
        max_text_length=MAX_TEXT_TOKENS,
        max_lyric_length=MAX_LYRIC_TOKENS,
        **told,
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
    return Lesson(latents, conditions)


def _loss(pipe: SongPipeline, lesson: Lesson, plan: Plan, cuts: int, dice: torch.Generator) -> Tensor:
    """Squared error of the predicted flow, noise minus latents, at times that the sampler's schedule looks at."""
    transformer, device = pipe.transformer, lesson.latents.device
    patch = transformer.config.patch_size
    frames = min(len(lesson.latents), max(1, round(plan.cut_s * pipe.latents_per_second / patch)) * patch)
    starts = torch.randint((len(lesson.latents) - frames) // patch + 1, (cuts,), generator=dice) * patch
    spans = [slice(start, start + frames) for start in starts.tolist()]
    answer = torch.stack([lesson.latents[span] for span in spans])
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
            lesson.conditions.expand(cuts, -1, -1),
            torch.cat([context, torch.ones_like(context)], dim=-1),
            return_dict=False,
        )[0]
    loss: Tensor = (flow.float() - (noise - answer)).square().mean()
    return loss


@torch.no_grad()
def _judge(pipe: SongPipeline, lessons: Sequence[Lesson], plan: Plan) -> float:
    dice = torch.Generator().manual_seed(plan.seed + 1)
    return sum(_loss(pipe, lesson, plan, _JUDGED_CUTS, dice).item() for lesson in lessons) / len(lessons)
