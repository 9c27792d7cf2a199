"""A checkpoint made without a download: the whole pipeline in 1.4 million random parameters.

It generates noise, at every task, with the real pipeline code: what a test of that code needs, and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AceStepPipeline, AceStepTransformer1DModel, AutoencoderOobleck, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.loading import load
from gpu_worker.planner.prompts import CHOICES, field_line
from gpu_worker.settings import WorkerSettings
from serinette.job import Stage

_SEED = 0
_END = "<|endoftext|>"
_ATTENTION: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_WIDTH = {"hidden_size": 64, "intermediate_size": 128}
_TEXT_WIDTH = 32
# Few, as the codec of audio is most of a test's time.
_LATENTS = 4
# 2 * 4 * 4 * 6 * 10 = 1920 samples a latent frame: 25 a second at 48 kHz, as the full-size model has.
_STRIDES = (2, 4, 4, 6, 10)


def build(
    directory: Path,
    *,
    turbo: bool,
    strides: Sequence[int] = _STRIDES,
    blocks: int = 2,
    levels: list[int] | None = None,
) -> None:
    """Write a checkpoint with random weights, the same bytes each time; `turbo`, or a base that takes guidance.

    `strides` are of the decoder's blocks; their product is the samples of a latent frame. `blocks` are of the
    transformer; `levels` of the audio tokenizer, whose codes are as many as their product (64,000).
    """
    parts: dict[str, Callable[[], Any]] = {
        "vae": partial(_decoder, strides),
        "text_encoder": _text_encoder,
        "transformer": partial(_transformer, turbo=turbo, blocks=blocks),
        "condition_encoder": _condition_encoder,
        "audio_tokenizer": partial(_audio_tokenizer, levels),
        "audio_token_detokenizer": _audio_token_detokenizer,
    }
    pipeline = AceStepPipeline(
        tokenizer=byte_tokenizer(),
        # The pipeline computes its schedule itself, in 0 to 1, and wants it taken as it is.
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        **{name: _seeded(make) for name, make in parts.items()},
    )
    pipeline.save_pretrained(directory, safe_serialization=True)


def _seeded(make: Callable[[], Any]) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module: torch.nn.Module = make().eval()
    return module


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: needs no training and no file."""
    vocabulary = {char: token for token, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, _END: len(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers types only its models
        tokenizer_object=tokenizer, pad_token=_END, eos_token=_END, padding_side="right", model_max_length=4096
    )


def _text_encoder() -> Qwen3Model:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=257,
            hidden_size=_TEXT_WIDTH,
            intermediate_size=2 * _TEXT_WIDTH,
            num_hidden_layers=1,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            **_ATTENTION,
        )
    )


def _transformer(*, turbo: bool, blocks: int) -> Any:  # diffusers ships no types
    return AceStepTransformer1DModel(
        num_hidden_layers=blocks,
        in_channels=3 * _LATENTS,
        audio_acoustic_hidden_dim=_LATENTS,
        is_turbo=turbo,
        model_version="turbo" if turbo else "base",
        **_WIDTH,
        **_ATTENTION,
    )


def _condition_encoder() -> Any:  # diffusers ships no types
    return AceStepConditionEncoder(
        text_hidden_dim=_TEXT_WIDTH,
        timbre_hidden_dim=_LATENTS,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        **_WIDTH,
        **_ATTENTION,
    )


def _decoder(strides: Sequence[int]) -> Any:  # diffusers ships no types
    return AutoencoderOobleck(
        encoder_hidden_size=2 * _LATENTS,
        decoder_channels=4,
        decoder_input_channels=_LATENTS,
        audio_channels=2,
        downsampling_ratios=list(strides),
        channel_multiples=[1] * len(strides),
        sampling_rate=48_000,
    )


def _audio_tokenizer(levels: list[int] | None) -> Any:  # diffusers ships no types
    return AceStepAudioTokenizer(
        fsq_dim=_WIDTH["hidden_size"],
        fsq_input_levels=levels,
        audio_acoustic_hidden_dim=_LATENTS,
        num_attention_pooler_hidden_layers=1,
        **_WIDTH,
        **_ATTENTION,
    )


def _audio_token_detokenizer() -> Any:  # diffusers ships no types
    return AceStepAudioTokenDetokenizer(
        audio_acoustic_hidden_dim=_LATENTS, num_attention_pooler_hidden_layers=1, **_WIDTH, **_ATTENTION
    )


def engine_of(directory: Path, **asked: Any) -> AceStepEngine:
    """The engine of a checkpoint of ACE-Step, on one thread."""
    engine = load(
        WorkerSettings.model_validate({"work_dir": directory, "threads": 1, **asked, "model": str(directory)})
    )
    assert isinstance(engine, AceStepEngine)
    return engine


def unobserved(stage: Stage, step: int | None, steps: int | None) -> frozenset[int]:
    """Give up nothing."""
    return frozenset()


CODES = 256
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    *(field_line(name, value) for name, values in CHOICES.items() for value in values),
    "caption: A calm piano piece, with soft strings.\n  It ends as it began.\n",
    "# Lyric\n[Verse]\n静かな夜に、歌がきこえる。\nさくら さくら\n[Chorus]\nla la la\n\n",
]


def tiny_tokenizer(codes: Sequence[int] = range(CODES), *, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few lines; the codes get their ids in the order given."""
    made = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+\n*|\s*\n+|\s+(?!\S)|\s+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )
    tokenizer.add_tokens(["<|im_start|>", "<think>", "</think>"], special_tokens=False)
    tokenizer.add_tokens([f"<|audio_code_{code}|>" for code in codes])
    return tokenizer
