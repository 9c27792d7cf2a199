"""Which sampling a checkpoint gets, and which warnings a client gets of what has no effect."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_worker.engine.ace_step.sampling import fill_in, of_the_vocabulary
from serinette.job import Sampling
from serinette.spec import INSTRUMENTAL, GenerationSpec
from tools.music_box import words


@pytest.mark.parametrize(
    ("turbo", "asked", "expected"),
    [
        (True, {}, (8, 1.0, 3.0)),
        (False, {}, (50, 7.0, 1.0)),
        (True, {"steps": 4, "shift": 1.0}, (4, 1.0, 1.0)),
        (True, {"guidance_scale": 15.0}, (8, 1.0, 3.0)),
        (True, {"guidance_scale": 0.0}, (8, 1.0, 3.0)),
        (False, {"steps": 27, "guidance_scale": 15.0, "shift": 3.0}, (27, 15.0, 3.0)),
        (False, {"guidance_scale": 0.0}, (50, 0.0, 1.0)),
        (True, {"timesteps": (1.0, 0.7, 0.2)}, (3, 1.0, 3.0)),
        (False, {"timesteps": (0.9,), "steps": 20}, (1, 7.0, 1.0)),
    ],
)
def test_the_checkpoint_fills_in_what_the_spec_leaves_out(
    turbo: bool, asked: dict[str, Any], expected: tuple[int, float, float]
) -> None:
    sampling, _ = fill_in(GenerationSpec(**asked), turbo=turbo)
    steps, guidance_scale, shift = expected
    assert sampling == Sampling(steps=steps, guidance_scale=guidance_scale, shift=shift, turbo=turbo)


SOURCE = {"source_audio": "upload"}


@pytest.mark.parametrize(
    ("turbo", "asked", "fields"),
    [
        (True, {}, []),
        (False, {}, []),
        (True, {"guidance_scale": 1.0}, []),
        (True, {"guidance_scale": 7.0}, ["guidance_scale"]),
        (False, {"guidance_scale": 7.0, "cfg_start": 0.1, "cfg_end": 0.9}, []),
        (False, {"guidance_scale": 1.0, "cfg_start": 0.1}, ["cfg_start"]),
        (True, {"cfg_start": 0.1, "cfg_end": 0.9}, ["cfg_start", "cfg_end"]),
        (False, {"timesteps": (1.0, 0.5), "steps": 20, "shift": 2.0}, ["steps", "shift"]),
        (True, {"repaint_start_s": 1, "track": "vocals", "cover_strength": 0.5}, 3),
        (True, {"task": "repaint", "repaint_end_s": 4, **SOURCE}, []),
        (True, {"task": "repaint", "duration_s": 30, **SOURCE}, ["duration_s"]),
        (True, {"task": "cover", "cover_strength": 0.5, **SOURCE}, []),
        (True, {"task": "cover", "audio_codes": "<|audio_code_1|>", **SOURCE}, ["source_audio"]),
        (True, {"audio_codes": "<|audio_code_1|>", "cover_strength": 0.5}, []),
        (True, {"audio_codes": "<|audio_code_1|>", "duration_s": 30}, ["duration_s"]),
        (True, SOURCE, ["source_audio"]),
        (False, {"task": "extract", "track": "vocals", **SOURCE}, []),
        (True, {"task": "extract", "track": "vocals", **SOURCE}, ["task"]),
        (False, {"task": "lego", "track": "drums", "repaint_start_s": 2, **SOURCE}, []),
        (False, {"task": "complete", "tracks": ("drums",), "audio_codes": "<|audio_code_1|>", **SOURCE}, 1),
    ],
)
def test_a_field_without_effect_is_reported(turbo: bool, asked: dict[str, Any], fields: list[str] | int) -> None:
    _, warnings = fill_in(GenerationSpec(**asked), turbo=turbo)
    named = [warning.partition(":")[0] for warning in warnings]
    if isinstance(fields, int):
        assert len(named) == fields
    else:
        assert named == fields


CLOSED = words.tokenizer().init_kwargs["closed_vocabulary"]


def unheard(prompt: str, lyrics: str = INSTRUMENTAL) -> list[str]:
    spans = words.tokenizer()(prompt, return_offsets_mapping=True).offset_mapping
    return of_the_vocabulary(prompt, lyrics, spans, CLOSED)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a happy tune on the harp, with drums", []),
        ("Slow, SAD music for flute in C♯ minor, 72 BPM", []),
        ("楽しいオルゴールの曲、ハ長調、テンポ120", []),
        ("Ｆｌｕｔｅ", []),
        ("", []),
        ("jazz piano, smooth", ["jazz"]),
        ("Jazz trumpet and jazz drums", ["jazz", "trumpet"]),
        ("夜のピアノ、ジャズ", ["夜", "ジャズ"]),
        ("crusaders saddle up", ["crusaders", "saddle", "up"]),
        ("w" * 5000, ["w" * 24]),
    ],
)
def test_words_that_a_model_of_few_words_does_not_know_are_named(prompt: str, named: list[str]) -> None:
    said = ", ".join(f'"{word}"' for word in named)
    warning = f"prompt: the model does not know {said}; it knows {words.KNOWS}"
    assert unheard(prompt) == ([warning] if named else [])


def test_as_many_are_named_as_can_be_read() -> None:
    (warning,) = unheard(" ".join(f"{letter}{letter}{letter}" for letter in "bcdfghjklmnpqr"))
    assert '"kkk" and 6 more; it knows' in warning


def test_a_model_without_a_voice_says_so() -> None:
    assert unheard("calm harp", "la la la") == ["lyrics: ignored, the model has no voice"]
