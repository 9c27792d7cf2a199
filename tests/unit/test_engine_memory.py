"""What is said to fit: tables of the plan, and the count that it rests on against work that was really done."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AceStepTransformer1DModel

from benchmarks.engine.full_size import TRANSFORMERS
from gpu_worker.engine.ace_step.conditions import StepConditions
from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.ace_step.footprint import need_of, transformer_curves
from gpu_worker.engine.ace_step.pipeline import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS
from gpu_worker.engine.interface import SongRequest
from gpu_worker.engine.memory.measuring import Live, without_memory
from gpu_worker.engine.memory.plan import CPU_WINDOWS, Curve, Need, plan
from gpu_worker.engine.serving.batching import Room
from serinette.errors import ConfigurationError
from serinette.spec import GenerationSpec
from tests.tiny_checkpoint import engine_of, unobserved

DOCS = Path(__file__).parents[2] / "docs"
GIB = 1024**3
# ACE-Step 1.5 turbo and XL in bf16, as `need_of` counts a checkpoint of their sizes (the test below counts again).
TURBO = Need(
    weights_bytes=6 * GIB,
    largest_part_bytes=3 * GIB,
    steps=(Curve(415_416_322, 216_128), Curve(327_372_802, 29_312, 32.5)),
    decoder=Curve(0.17e9, 2.21e6),
    frames_per_s=25.0,
    max_duration_s=600.0,
    guidance=False,
)
XL = replace(
    TURBO,
    weights_bytes=round(10.3 * GIB),
    largest_part_bytes=8 * GIB,
    steps=(Curve(569_634_818, 425_088), Curve(431_243_266, 48_768, 64.5)),
)


@pytest.mark.parametrize(("size", "need"), [("turbo", TURBO), ("xl", XL)])
def test_the_full_sizes_are_counted(size: str, need: Need) -> None:
    config = {"num_hidden_layers": 24, **TRANSFORMERS[size]}
    assert transformer_curves(config, torch.bfloat16) == need.steps


@pytest.mark.parametrize(
    ("need", "free_gib", "offload", "at_once", "longest_s"),
    [
        (TURBO, 139, False, 16, 600),
        (XL, 139, False, 16, 600),
        (TURBO, 24, False, 16, 600),
        (XL, 15, False, 4, 219),  # what is generated bounds it
        (TURBO, 10, False, 3, 323),
        (TURBO, 8, True, 5, 405),
    ],
)
def test_a_card_of_this_size(need: Need, free_gib: int, offload: bool, at_once: int, longest_s: float) -> None:
    made = plan(need, free_gib * GIB)
    assert (made.offload, made.windows.at_once, made.longest_s) == (offload, at_once, longest_s)
    assert made.songs(made.longest_s) >= 1
    assert need.decoder.bytes_of(made.windows.at_once * made.windows.frames) < free_gib * GIB


@pytest.mark.parametrize(
    ("need", "duration_s", "songs"),
    [
        (TURBO, 400, 8),
        (TURBO, 600, 8),
        (XL, 400, 8),
        (XL, 600, 7),
        (replace(TURBO, guidance=True), 400, 8),
        (replace(TURBO, guidance=True), 600, 7),
    ],
)
def test_long_songs_fit_beside_each_other_on_a_large_card(need: Need, duration_s: int, songs: int) -> None:
    made = plan(need, 139 * GIB)
    assert made.longest_s >= duration_s
    assert Room(8, fits=made.songs).songs(duration_s) == songs
    assert made.windows.at_once * made.windows.frames <= 8192


@pytest.mark.parametrize("duration_s", [10, 60, 240, 600])
@pytest.mark.parametrize("free_gib", [12, 15, 24, 48])
@pytest.mark.parametrize("need", [TURBO, XL, replace(TURBO, guidance=True)])
def test_what_may_be_generated_together_fits_for_any_length(need: Need, free_gib: int, duration_s: int) -> None:
    made = plan(need, free_gib * GIB)
    if duration_s <= made.longest_s:
        songs = Room(16, fits=made.songs).songs(duration_s) * (2 if need.guidance else 1)
        work_bytes = songs * max(curve.bytes_of(25 * duration_s) for curve in need.steps)
        held_bytes = need.largest_part_bytes if made.offload else need.weights_bytes
        assert work_bytes + held_bytes < 0.9 * free_gib * GIB


@pytest.mark.parametrize("page", ["models.md", "models.ja.md"])
def test_the_table_of_the_page_is_computed(page: str) -> None:
    rows = re.findall(r"^\| (\d+) GiB \|(.*)\|$", (DOCS / page).read_text(), re.MULTILINE)
    assert len(rows) == 8
    for free_gib, cells in rows:
        shown = [[int(number) for number in re.findall(r"\d+", cell)] for cell in cells.split("|")]
        assert shown == [
            planned(need, int(free_gib))
            for need in (TURBO, replace(TURBO, guidance=True), XL, replace(XL, guidance=True))
        ]


def planned(need: Need, free_gib: int) -> list[int]:
    """The seconds of the longest song, and how many of 60 s and of 240 s; nothing where it does not fit."""
    try:
        found = plan(need, free_gib * GIB)
    except ConfigurationError:
        return []
    return [round(found.longest_s), *(int(found.songs(s)) if found.longest_s >= s else 0 for s in (60, 240))]


def test_what_the_operator_chose_stays() -> None:
    assert plan(TURBO, 79 * GIB, offload=True).offload
    assert not plan(TURBO, 10 * GIB, offload=False).offload


def test_guidance_halves_what_is_generated_at_once() -> None:
    plain, guided = plan(TURBO, 24 * GIB), plan(replace(TURBO, guidance=True), 24 * GIB)
    assert guided.songs(60) == plain.songs(60) // 2 > 1


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


def test_weights_are_counted_as_they_will_be_loaded(counted: Need, engine: AceStepEngine) -> None:
    parts = [engine._pipe.transformer, engine._pipe.vae, engine._pipe.text_encoder, engine._pipe.condition_encoder]
    parts += [engine._pipe.audio_tokenizer, engine._pipe.audio_token_detokenizer]
    numbers = sum(weight.numel() for part in parts for weight in part.state_dict().values())
    assert counted.weights_bytes == 2 * numbers
    assert (counted.frames_per_s, counted.max_duration_s, counted.guidance) == (25.0, 600.0, False)


@pytest.fixture(scope="module")
def counted(tiny_turbo: Path) -> Need:
    return need_of(tiny_turbo, torch.bfloat16)


@pytest.mark.parametrize("frames", [(250,), (2_000,), (10_000,), (15_000,), (10_000, 9_500), (15_000,) * 8])
def test_what_is_planned_is_enough_and_not_far_from_what_is_counted(
    tiny_turbo: Path, counted: Need, frames: tuple[int, ...]
) -> None:
    """A step as songs in company do it, without memory: on a GPU what no fused kernel takes has a matrix of S x S."""
    planned = len(frames) * max(curve.bytes_of(max(frames)) for curve in counted.steps)
    config = json.loads((tiny_turbo / "transformer" / "config.json").read_text())
    songs, tokens = len(frames), MAX_TEXT_TOKENS + MAX_LYRIC_TOKENS + 1
    with without_memory(torch.bfloat16):
        module = AceStepTransformer1DModel.from_config(config).eval()
        StepConditions(module).begin(frames, [None] * songs, torch.device("meta"))
        latents = module.config.audio_acoustic_hidden_dim
        shapes = {
            "hidden_states": (songs, max(frames), latents),
            "timestep": (songs,),
            "timestep_r": (songs,),
            "encoder_hidden_states": (songs, tokens, module.condition_embedder.in_features),
            "context_latents": (songs, max(frames), module.config.in_channels - latents),
        }
        with Live() as live:
            module(**{name: torch.empty(shape) for name, shape in shapes.items()})
    assert live.peak <= 1.1 * planned
    assert live.peak >= 0.5 * planned


def test_what_is_planned_is_enough_for_all_that_an_engine_does(tiny_turbo: Path, engine: AceStepEngine) -> None:
    need, songs, frames = need_of(tiny_turbo, torch.float32), 4, 250
    planned = max(songs * max(curve.bytes_of(frames) for curve in need.steps), need.decoder.bytes_of(frames))
    spec = GenerationSpec(prompt="jazz", duration_s=10.0, steps=2)
    with Live() as live:
        engine.generate_all([SongRequest(spec, seed) for seed in range(songs)], unobserved)
    assert 0.5 * planned <= live.peak <= 1.15 * planned


def test_decoding_takes_the_same_however_long_the_song_is(
    engine: AceStepEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, asked = engine._pipe.vae.decoder, []

    def note_size(latents: torch.Tensor) -> torch.Tensor:
        asked.append(latents.numel())
        return torch.ones(len(latents), 2, 1920 * latents.shape[-1])

    monkeypatch.setattr(decoder, "forward", note_size)
    largest = []
    for duration_s in (60.0, 120.0):
        asked.clear()
        engine.generate_all([SongRequest(GenerationSpec(duration_s=duration_s, steps=1), 1)], unobserved)
        largest.append(max(asked))
    assert largest == [4 * CPU_WINDOWS.frames] * 2


def test_a_source_is_encoded_in_pieces(engine: AceStepEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, asked = engine._pipe.vae, []

    def note_size(audio: torch.Tensor) -> torch.Tensor:
        asked.append(audio.shape[-1])
        return torch.zeros(len(audio), 8, audio.shape[-1] // 1920)

    monkeypatch.setattr(vae.encoder, "forward", note_size)
    monkeypatch.setattr(vae.decoder, "forward", lambda given: torch.ones(len(given), 2, 1920 * given.shape[-1]))
    largest = []
    for duration_s in (60, 120):
        asked.clear()
        spec = GenerationSpec(task="extract", track="vocals", source_audio="upload", steps=1)
        source = np.zeros((2, 48_000 * duration_s), np.float32)
        engine.generate_all([SongRequest(spec, 1, source)], unobserved)
        largest.append(max(asked))
    assert largest == [1920 * CPU_WINDOWS.frames] * 2


def test_a_cpu_has_no_bounds(engine: AceStepEngine) -> None:
    assert engine.songs_together(600) == math.inf
    assert engine.model.max_duration_s == 600
