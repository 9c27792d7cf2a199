"""The seed's fields, one by one: honoured, mapped, ignored, refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.dialects.gradio.request import (
    DRAWN_DURATION_S,
    LYRIC_DEFAULT,
    TAG_DEFAULT,
    GenerateMusicRequest,
    Order,
    order,
)
from serinette.errors import InvalidSpec
from serinette.spec import MAX_SEED, AudioFormat, GenerationSpec, Task

# What a client that sends v1's whole form sends, at v1's defaults.
WHOLE_FORM: dict[str, Any] = {
    "format": "wav",
    "audio_duration": 60.0,
    "prompt": "funk",
    "lyrics": "la la",
    "infer_step": 60,
    "guidance_scale": 15.0,
    "scheduler_type": "euler",
    "cfg_type": "apg",
    "omega_scale": 10.0,
    "manual_seeds": None,
    "guidance_interval": 0.5,
    "guidance_interval_decay": 0.0,
    "min_guidance_scale": 3.0,
    "use_erg_tag": True,
    "use_erg_lyric": False,
    "use_erg_diffusion": True,
    "oss_steps": None,
    "guidance_scale_text": 0.0,
    "guidance_scale_lyric": 0.0,
    "audio2audio_enable": False,
    "ref_audio_strength": 0.5,
    "ref_audio_input": None,
    "lora_name_or_path": "none",
    "lora_weight": 1.0,
    "return_file_data": False,
}


def mapped(body: dict[str, Any], upload_id: str | None = None) -> Order:
    return order(GenerateMusicRequest.model_validate(body), upload_id, draw=lambda below: 7)


def told(body: dict[str, Any], upload_id: str | None = None) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in mapped(body, upload_id).dialect.items()}


def complaint(body: dict[str, Any]) -> tuple[str, str]:
    """Field and message of the one thing that is wrong."""
    with pytest.raises(ValidationError) as caught:
        GenerateMusicRequest.model_validate(body)
    [error] = caught.value.errors()
    return str(error["loc"][0]), error["msg"]


def test_what_is_left_out_means_the_checkpoints_own_default() -> None:
    spec = mapped({}).spec
    assert spec == GenerationSpec(prompt=TAG_DEFAULT, lyrics=LYRIC_DEFAULT, format=AudioFormat.WAV, seed=7)
    assert (spec.steps, spec.guidance_scale, spec.shift, spec.cfg_start, spec.cfg_end) == (None, None, None, 0.0, 1.0)
    assert told({}) == {"return_file_data": False, "sent": {}, "adjusted": [], "ignored": []}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"format": "mp3"}, {"format": AudioFormat.MP3}),
        ({"format": " FLAC"}, {"format": AudioFormat.FLAC}),
        ({"format": "ogg"}, {"format": AudioFormat.OGG}),
        ({"format": "m4a"}, {"format": AudioFormat.M4A}),
        ({"audio_duration": 15}, {"duration_s": 15.0}),
        ({"audio_duration": "600"}, {"duration_s": 600.0}),
        ({"prompt": "jazz piano, smooth"}, {"prompt": "jazz piano, smooth"}),
        ({"prompt": ""}, {"prompt": ""}),
        ({"lyrics": "歌詞\n二行目"}, {"lyrics": "歌詞\n二行目"}),
        ({"lyrics": ""}, {"lyrics": ""}),
        ({"infer_step": 1}, {"steps": 1}),
        ({"infer_step": 200}, {"steps": 200}),
        ({"guidance_scale": 0}, {"guidance_scale": 0.0}),
        ({"guidance_scale": 30}, {"guidance_scale": 30.0}),
        ({"guidance_interval": 0.5}, {"cfg_start": 0.25, "cfg_end": 0.75}),
        ({"guidance_interval": 1}, {"cfg_start": 0.0, "cfg_end": 1.0}),
        ({"guidance_interval": 0}, {"cfg_start": 0.5, "cfg_end": 0.5}),
        ({"manual_seeds": "12"}, {"seed": 12}),
        ({"manual_seeds": 12}, {"seed": 12}),
        ({"manual_seeds": f" {MAX_SEED} "}, {"seed": MAX_SEED}),
        ({"manual_seeds": ""}, {"seed": 7}),
        ({"manual_seeds": None}, {"seed": 7}),
        ({"lora_name_or_path": "None"}, {"lora": None}),
        ({"lora_name_or_path": ""}, {"lora": None}),
        ({"lora_name_or_path": "choir"}, {"lora": "choir", "lora_scale": 1.0}),
        ({"lora_name_or_path": "choir", "lora_weight": 0.5}, {"lora": "choir", "lora_scale": 0.5}),
    ],
)
def test_a_field_that_is_honoured(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    spec = mapped(sent).spec
    assert {name: getattr(spec, name) for name in expected} == expected
    assert told(sent)["adjusted"] == []
    assert told(sent)["ignored"] == []


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"format": "aiff"}, "format"),
        ({"format": 3}, "format"),
        ({"audio_duration": 600.5}, "audio_duration"),
        ({"audio_duration": 0.5}, "audio_duration"),
        ({"audio_duration": float("nan")}, "audio_duration"),
        ({"audio_duration": float("-inf")}, "audio_duration"),
        ({"audio_duration": "long"}, "audio_duration"),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"prompt": "a" * 8_193}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"lyrics": "\x1b[2J"}, "lyrics"),
        ({"infer_step": 0}, "infer_step"),
        ({"infer_step": 201}, "infer_step"),
        ({"infer_step": 2.5}, "infer_step"),
        ({"guidance_scale": -10}, "guidance_scale"),
        ({"guidance_scale": 31}, "guidance_scale"),
        ({"guidance_interval": 1.1}, "guidance_interval"),
        ({"manual_seeds": "12,x"}, "manual_seeds"),
        ({"manual_seeds": "-1"}, "manual_seeds"),
        ({"manual_seeds": str(MAX_SEED + 1)}, "manual_seeds"),
        ({"manual_seeds": "²"}, "manual_seeds"),
        ({"ref_audio_strength": 1.5}, "ref_audio_strength"),
        ({"lora_name_or_path": "ACE-Step/some-lora"}, "lora_name_or_path"),
        ({"lora_name_or_path": "/etc/passwd"}, "lora_name_or_path"),
        ({"lora_name_or_path": "choir", "lora_weight": 5}, "lora_weight"),
        ({"omega_scale": "much"}, "omega_scale"),
        ({"use_erg_tag": "perhaps"}, "use_erg_tag"),
        ({"return_file_data": 2}, "return_file_data"),
    ],
)
def test_a_value_that_is_refused_names_its_field(sent: dict[str, Any], field: str) -> None:
    assert complaint(sent)[0] == field


def test_a_refused_lora_is_told_what_to_do() -> None:
    assert "`none`" in complaint({"lora_name_or_path": "loras/x"})[1]


def test_what_v1_alone_has_is_accepted_and_listed_not_hidden() -> None:
    answer = told(WHOLE_FORM)
    assert answer["ignored"] == [
        "lora_weight",
        "scheduler_type",
        "cfg_type",
        "omega_scale",
        "guidance_interval_decay",
        "min_guidance_scale",
        "use_erg_tag",
        "use_erg_lyric",
        "use_erg_diffusion",
        "guidance_scale_text",
        "guidance_scale_lyric",
        "ref_audio_strength",
    ]
    assert answer["adjusted"] == []
    assert answer["sent"] == {name: value for name, value in WHOLE_FORM.items() if name not in {"prompt", "lyrics"}}


def test_unknown_fields_are_listed_as_ignored_and_bounded() -> None:
    assert told({"batch_size": 2, "retake_seeds": None})["ignored"] == ["batch_size", "retake_seeds"]
    many = told({f"{'x' * 100}{number}": number for number in range(100)})["ignored"]
    assert len(many) == 32
    assert max(map(len, many)) == 64


def test_of_several_seeds_the_first_is_used_and_that_is_told() -> None:
    assert mapped({"manual_seeds": "12, 34"}).spec.seed == 12
    [adjusted] = told({"manual_seeds": "12, 34"})["adjusted"]
    assert (adjusted["field"], adjusted["sent"], adjusted["used"]) == ("manual_seeds", "12, 34", 12)


@pytest.mark.parametrize("seconds", [0, -1, -60.5])
def test_a_duration_of_nothing_is_drawn_by_the_seed_and_told(seconds: float) -> None:
    body = {"audio_duration": seconds, "manual_seeds": "5"}
    drawn = mapped(body).spec.duration_s
    shortest, longest = DRAWN_DURATION_S
    assert shortest <= drawn <= longest
    assert mapped(body).spec == mapped(body).spec
    assert mapped(body | {"manual_seeds": "6"}).spec.duration_s != drawn
    [adjusted] = told(body)["adjusted"]
    assert (adjusted["field"], adjusted["sent"], adjusted["used"]) == ("audio_duration", seconds, drawn)


def test_reference_audio_of_ours_makes_a_cover() -> None:
    body = {"audio2audio_enable": True, "ref_audio_input": "a1b2-c3", "ref_audio_strength": 0.7, "audio_duration": 30}
    spec = mapped(body).spec
    assert (spec.task, spec.source_audio, spec.cover_strength) == (Task.COVER, "a1b2-c3", 0.7)
    assert [each["field"] for each in told(body)["adjusted"]] == ["audio_duration"]
    assert told(body)["ignored"] == []


def test_audio_that_came_along_goes_before_a_path_in_the_form() -> None:
    body = {"ref_audio_input": "/tmp/uploaded.mp3", "audio2audio_enable": False}
    spec = mapped(body, upload_id="fresh").spec
    assert (spec.task, spec.source_audio, spec.cover_strength) == (Task.COVER, "fresh", 1.0)


@pytest.mark.parametrize(
    "path",
    [
        "/tmp/song.mp3",
        "../../etc/passwd",
        "/tmp/../etc/passwd",
        "C:\\song.wav",
        "http://host/a.wav",
        "id/9",
        "a b",
        "é",
    ],
)
def test_a_path_is_refused_in_words_and_never_opened(path: str) -> None:
    with pytest.raises(InvalidSpec, match="POST /v1/uploads") as caught:
        mapped({"audio2audio_enable": True, "ref_audio_input": path})
    assert caught.value.field == "ref_audio_input"
    assert "/generate_music_with_audio" in caught.value.message


def test_reference_audio_without_the_switch_counts_for_nothing_as_in_v1() -> None:
    body = {"ref_audio_input": "/tmp/song.mp3", "ref_audio_strength": 0.0}
    assert mapped(body).spec.task is Task.TEXT2MUSIC
    assert told(body)["ignored"] == ["ref_audio_input", "ref_audio_strength"]


def test_the_switch_without_reference_audio_is_told() -> None:
    assert mapped({"audio2audio_enable": True}).spec.task is Task.TEXT2MUSIC
    assert [each["field"] for each in told({"audio2audio_enable": True})["adjusted"]] == ["audio2audio_enable"]


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "format": st.sampled_from(["wav", "MP3", "ogg", "flac", "m4a", "aac"]),
            "audio_duration": st.floats(-10, 700),
            "prompt": st.text(max_size=20),
            "lyrics": st.text(max_size=20),
            "infer_step": st.integers(-5, 250),
            "guidance_scale": st.floats(-5, 40),
            "guidance_interval": st.floats(-0.5, 1.5),
            "manual_seeds": st.text("0123456789, -x", max_size=30),
            "audio2audio_enable": st.booleans(),
            "ref_audio_input": st.text(max_size=20),
            "ref_audio_strength": st.floats(),
        },
    )
)
def test_whatever_passes_the_bounds_is_a_spec_that_a_worker_can_read(body: dict[str, Any]) -> None:
    try:
        request = GenerateMusicRequest.model_validate(body)
        spec = order(request).spec
    except (ValidationError, InvalidSpec):
        return
    assert GenerationSpec.from_wire(spec.to_wire()) == spec
