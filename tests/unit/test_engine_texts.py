"""Texts that are encoded once, and never differently for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from gpu_worker.engine.ace_step import conditions
from gpu_worker.engine.ace_step.conditions import TextCache
from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.interface import SongRequest
from gpu_worker.wire import Samples
from serinette.spec import GenerationSpec
from tests.tiny_checkpoint import engine_of, unobserved


class Encoder(nn.Module):
    def forward(self, input_ids: Tensor) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=input_ids[..., None].float())


def encode(encoder: Encoder, *rows: list[int]) -> list[list[float]]:
    states: list[list[float]] = encoder(input_ids=torch.tensor(rows)).last_hidden_state[..., 0].tolist()
    return states


def test_a_text_is_encoded_once_however_many_songs_have_it() -> None:
    encoder = Encoder()
    kept = TextCache.on(encoder)
    assert encode(encoder, [1, 2], [1, 2], [1, 2]) == [[1, 2]] * 3
    assert encode(encoder, [1, 2]) == [[1, 2]]
    assert kept.encoded == 1
    assert encode(encoder, [3, 4], [1, 2]) == [[3, 4], [1, 2]]
    assert kept.encoded == 3


def test_the_text_unheard_longest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_MOST_TEXTS", 2)
    encoder = Encoder()
    kept = TextCache.on(encoder)
    for token in (1, 2, 1, 3, 1):
        encode(encoder, [token])
    assert kept.encoded == 3
    encode(encoder, [2])
    assert kept.encoded == 4


def test_a_song_has_the_same_bits_whatever_was_generated_before(tiny_turbo: Path) -> None:
    engine = engine_of(tiny_turbo)
    first = generate(engine, "jazz")
    generate(engine, "something longer than that", "jazz")
    assert np.array_equal(generate(engine, "jazz"), first)
    fresh = engine_of(tiny_turbo)
    generate(fresh, "jazz", "something longer than that")
    assert np.array_equal(generate(fresh, "jazz"), first)


def generate(engine: AceStepEngine, *prompts: str) -> Samples:
    batch = [SongRequest(GenerationSpec(prompt=prompt, duration_s=1.0, steps=2), 1) for prompt in prompts]
    song = engine.generate_all(batch, unobserved)[0]
    assert song
    return song.samples
