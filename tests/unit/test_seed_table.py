"""The seed's fields, one by one: honoured, mapped, ignored, refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.dialects.fields import Conversion
from api.dialects.seed.request import LYRIC_DEFAULT, TAG_DEFAULT, GenerateMusicForm, GenerateMusicRequest
from api.dialects.seed.table import DRAWN_DURATION_S, convert, record_of
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


def converted(body: dict[str, Any], upload_id: str | None = None) -> Conversion[GenerateMusicRequest]:
    return convert(GenerateMusicRequest.model_validate(body), upload_id, draw=lambda below: 7)


def spec(body: dict[str, Any], upload_id: str | None = None) -> GenerationSpec:
    return converted(body, upload_id).spec()


def recorded(body: dict[str, Any]) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in record_of(converted(body)).items()}


def complaint(body: dict[str, Any]) -> tuple[str, str]:
    """Field and message of the one thing that is wrong."""
    with pytest.raises(ValidationError) as caught:
        GenerateMusicRequest.model_validate(body)
    [error] = caught.value.errors()
    return str(error["loc"][0]), error["msg"]


def test_what_is_left_out_means_the_checkpoints_own_default() -> None:
    made = spec({})
    assert made == GenerationSpec(prompt=TAG_DEFAULT, lyrics=LYRIC_DEFAULT, format=AudioFormat.WAV, seed=7)
    assert (made.steps, made.guidance_scale, made.shift, made.cfg_start, made.cfg_end) == (None, None, None, 0.0, 1.0)
    assert recorded({}) == {"return_file_data": False, "sent": {}, "adjusted": [], "ignored": []}


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
        ({"manual_seeds": "-1"}, {"seed": 7}),
        ({"manual_seeds": -1}, {"seed": 7}),
        ({"manual_seeds": [12]}, {"seed": 12}),
        ({"lyrics": None}, {"lyrics": ""}),
        ({"prompt": None, "format": None, "audio_duration": None}, {"prompt": TAG_DEFAULT, "duration_s": 60.0}),
        ({"lora_name_or_path": "None"}, {"lora": None}),
        ({"lora_name_or_path": ""}, {"lora": None}),
        ({"lora_name_or_path": "choir"}, {"lora": "choir", "lora_scale": 1.0}),
        ({"lora_name_or_path": "choir", "lora_weight": 0.5}, {"lora": "choir", "lora_scale": 0.5}),
    ],
)
def test_a_field_that_is_honoured(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    made = spec(sent)
    assert {name: getattr(made, name) for name in expected} == expected
    assert recorded(sent)["adjusted"] == []
    assert recorded(sent)["ignored"] == []


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
        ({"manual_seeds": "-2"}, "manual_seeds"),
        ({"manual_seeds": {}}, "manual_seeds"),
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


def test_a_refused_lora_says_what_to_send() -> None:
    assert "`none`" in complaint({"lora_name_or_path": "loras/x"})[1]


def test_what_v1_alone_has_is_accepted_and_listed_not_hidden() -> None:
    answer = recorded(WHOLE_FORM)
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
    said = {name: value for name, value in WHOLE_FORM.items() if value is not None}
    assert answer["sent"] == {name: value for name, value in said.items() if name not in {"prompt", "lyrics"}}
    assert recorded({"oss_steps": [10, 20.5], "lyrics": None})["ignored"] == ["oss_steps"]


def test_a_genre_is_the_prompt_of_forms_alone() -> None:
    sent = {"genre": "heavy metal", "prompt": "jazz"}
    assert (spec(sent).prompt, recorded(sent)["ignored"]) == ("jazz", ["genre"])
    form = convert(GenerateMusicForm.model_validate(sent))
    assert (form.spec().prompt, form.ignored) == ("heavy metal", [])


def test_unknown_fields_are_listed_as_ignored_and_bounded() -> None:
    assert recorded({"batch_size": 2, "retake_seeds": "1"})["ignored"] == ["batch_size", "retake_seeds"]
    many = recorded({f"{'x' * 100}{number}": number for number in range(100)})["ignored"]
    assert len(many) == 32
    assert max(map(len, many)) == 64


def test_of_several_seeds_the_first_is_used_and_that_is_recorded() -> None:
    assert spec({"manual_seeds": "12, 34"}).seed == 12
    [adjusted] = recorded({"manual_seeds": "12, 34"})["adjusted"]
    assert (adjusted["field"], adjusted["sent"], adjusted["used"]) == ("manual_seeds", "12, 34", 12)


@pytest.mark.parametrize("seconds", [0, -1, -60.5])
def test_a_duration_of_nothing_is_drawn_by_the_seed_and_recorded(seconds: float) -> None:
    body = {"audio_duration": seconds, "manual_seeds": "5"}
    drawn = spec(body).duration_s
    shortest, longest = DRAWN_DURATION_S
    assert shortest <= drawn <= longest
    assert spec(body) == spec(body)
    assert spec(body | {"manual_seeds": "6"}).duration_s != drawn
    [adjusted] = recorded(body)["adjusted"]
    assert (adjusted["field"], adjusted["sent"], adjusted["used"]) == ("audio_duration", seconds, drawn)


def test_reference_audio_of_ours_makes_a_cover() -> None:
    body = {"audio2audio_enable": True, "ref_audio_input": "a1b2-c3", "ref_audio_strength": 0.7, "audio_duration": 30}
    made = spec(body)
    assert (made.task, made.source_audio, made.cover_strength) == (Task.COVER, "a1b2-c3", 0.7)
    assert [each["field"] for each in recorded(body)["adjusted"]] == ["audio_duration"]
    assert recorded(body)["ignored"] == []


def test_audio_that_came_along_goes_before_a_path_in_the_form() -> None:
    body = {"ref_audio_input": "/tmp/uploaded.mp3", "audio2audio_enable": False}
    made = spec(body, upload_id="fresh")
    assert (made.task, made.source_audio, made.cover_strength) == (Task.COVER, "fresh", 1.0)


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
def test_a_path_is_refused_with_a_reason_and_never_opened(path: str) -> None:
    with pytest.raises(InvalidSpec, match="POST /v1/uploads") as caught:
        converted({"audio2audio_enable": True, "ref_audio_input": path})
    assert caught.value.field == "ref_audio_input"
    assert "/generate_music_with_audio" in caught.value.message


def test_reference_audio_without_the_switch_counts_for_nothing_as_in_v1() -> None:
    body = {"ref_audio_input": "/tmp/song.mp3", "ref_audio_strength": 0.0}
    assert spec(body).task is Task.TEXT2MUSIC
    assert recorded(body)["ignored"] == ["ref_audio_input", "ref_audio_strength"]


def test_the_switch_without_reference_audio_is_recorded() -> None:
    assert spec({"audio2audio_enable": True}).task is Task.TEXT2MUSIC
    assert [each["field"] for each in recorded({"audio2audio_enable": True})["adjusted"]] == ["audio2audio_enable"]


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
def test_what_passes_the_bounds_is_a_spec_that_a_worker_can_read(body: dict[str, Any]) -> None:
    try:
        request = GenerateMusicRequest.model_validate(body)
        made = convert(request).spec()
    except (ValidationError, InvalidSpec):
        return
    assert GenerationSpec.from_wire(made.to_wire()) == made
