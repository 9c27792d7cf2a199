"""What is said to fit: tables of the plan, and the count that it rests on against work that was really done."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.ace_step.footprint import need_of
from gpu_worker.engine.interface import SongRequest
from gpu_worker.engine.memory.measuring import Live
from gpu_worker.engine.memory.plan import Line, Need, plan
from serinette.errors import ConfigurationError
from serinette.spec import GenerationSpec
from tests.tiny_checkpoint import engine_of, unobserved

GIB = 1024**3
# ACE-Step 1.5 turbo and XL in bf16, as `need_of` counts a checkpoint of their sizes.
TURBO = Need(
    weights_bytes=6 * GIB,
    largest_part_bytes=3 * GIB,
    transformer=Line(0.41e9, 0.216e6),
    decoder=Line(0.17e9, 2.21e6),
    text_bytes=302_000_000,
    frames_per_s=25.0,
    max_duration_s=600.0,
    guidance=False,
)
XL = replace(
    TURBO,
    weights_bytes=round(10.3 * GIB),
    largest_part_bytes=8 * GIB,
    transformer=Line(0.57e9, 0.425e6),
    text_bytes=402_800_000,
)


@pytest.mark.parametrize(
    ("need", "free_gib", "offload", "at_once", "longest_s"),
    [
        (TURBO, 139, False, 16, 600),
        (XL, 139, False, 16, 600),
        (TURBO, 24, False, 16, 600),
        (XL, 15, False, 4, 219),  # what is generated bounds it
        (TURBO, 10, False, 3, 421),
        (TURBO, 8, True, 5, 600),
    ],
)
def test_a_card_of_this_size(need: Need, free_gib: int, offload: bool, at_once: int, longest_s: float) -> None:
    made = plan(need, free_gib * GIB)
    assert (made.offload, made.windows.at_once, made.longest_s) == (offload, at_once, longest_s)
    assert made.audio_s >= made.longest_s
    assert need.decoder.bytes_of(made.windows.at_once * made.windows.frames) < free_gib * GIB


@pytest.mark.parametrize("need", [TURBO, XL, replace(TURBO, guidance=True)])
@pytest.mark.parametrize("duration_s", [400, 600])
def test_a_long_song_fits_beside_seven_others_on_a_large_card(need: Need, duration_s: int) -> None:
    made = plan(need, 139 * GIB, max_batch=8)
    assert made.longest_s >= duration_s
    assert made.audio_s >= 8 * duration_s
    assert made.windows.at_once * made.windows.frames <= 8192


def test_a_small_card_generates_one_by_one_rather_than_by_parts() -> None:
    made = plan(TURBO, 10 * GIB, max_batch=16)
    assert not made.offload
    assert made.audio_s == pytest.approx(made.longest_s, abs=1)


def test_texts_of_all_songs_are_counted() -> None:
    one, eight = plan(TURBO, 24 * GIB, max_batch=1), plan(TURBO, 24 * GIB, max_batch=8)
    lost_bytes = (one.audio_s - eight.audio_s) * TURBO.frames_per_s * TURBO.transformer.per_frame
    assert lost_bytes == pytest.approx(7 * TURBO.text_bytes)


def test_what_the_operator_chose_stays() -> None:
    assert plan(TURBO, 79 * GIB, offload=True).offload
    assert not plan(TURBO, 10 * GIB, offload=False).offload


def test_guidance_halves_what_is_generated_at_once() -> None:
    plain, guided = plan(TURBO, 24 * GIB), plan(replace(TURBO, guidance=True, text_bytes=0), 24 * GIB)
    assert guided.audio_s == pytest.approx(plain.audio_s / 2)


@pytest.mark.parametrize(("free_gib", "offload"), [(3, None), (6, False)])
def test_a_card_that_holds_no_second_of_music_is_refused_with_the_numbers(free_gib: int, offload: bool | None) -> None:
    with pytest.raises(ConfigurationError, match=rf"weights take 6\.0 GiB.*{free_gib}\.0 GiB free"):
        plan(TURBO, free_gib * GIB, offload=offload)


@pytest.fixture(scope="module")
def engine(tiny_turbo: Path) -> AceStepEngine:
    return engine_of(tiny_turbo)


def test_tensors_are_counted_while_they_live() -> None:
    weight = torch.zeros(256, 256)
    with Live() as live:
        made = torch.zeros(1024)
        view = made[:512] @ weight.T[:, :1].expand(256, 2).reshape(512)  # views are nothing of their own
        del made, view
        torch.zeros(256)
    assert 4096 < live.peak < 4 * 256 * 256


def test_weights_are_counted_as_they_will_be_loaded(tiny_turbo: Path, engine: AceStepEngine) -> None:
    parts = [engine._pipe.transformer, engine._pipe.vae, engine._pipe.text_encoder, engine._pipe.condition_encoder]
    parts += [engine._pipe.audio_tokenizer, engine._pipe.audio_token_detokenizer]
    numbers = sum(weight.numel() for part in parts for weight in part.state_dict().values())
    need = need_of(tiny_turbo, torch.bfloat16)
    assert need.weights_bytes == 2 * numbers
    assert (need.frames_per_s, need.max_duration_s, need.guidance) == (25.0, 600.0, False)


@pytest.mark.parametrize(("songs", "duration_s"), [(1, 10.0), (4, 10.0), (1, 30.0)])
def test_what_is_planned_is_enough_and_not_far_from_what_is_used(
    tiny_turbo: Path, engine: AceStepEngine, songs: int, duration_s: float
) -> None:
    need = need_of(tiny_turbo, torch.float32)
    frames = duration_s * need.frames_per_s
    planned = max(need.transformer.bytes_of(songs * frames), need.decoder.bytes_of(frames))
    spec = GenerationSpec(prompt="jazz", duration_s=duration_s, steps=2)
    with Live() as live:
        engine.generate_all([SongRequest(spec, seed) for seed in range(songs)], unobserved)
    assert live.peak <= 1.15 * planned
    assert live.peak >= 0.5 * planned


def test_a_cpu_has_no_bounds(engine: AceStepEngine) -> None:
    assert engine.audio_s == math.inf
    assert engine.model.max_duration_s == 600
