"""ACE-Step 1.5's fields, one by one: honoured, mapped, reported, refused."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects.acestep.request import ReleaseTask
from api.dialects.acestep.samples import SIMPLE
from api.dialects.acestep.table import TABLE, convert, record_of, theirs
from api.dialects.fields import Conversion
from serinette.errors import InvalidSpec, Unsupported
from serinette.spec import INSTRUMENTAL, MAX_SEED, AudioFormat, GenerationSpec

JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
HELD = frozenset({"acestep-v15-turbo"})


# As the official request names them (API.md and the request's model), and the files of a form.
THEIRS = re.findall(
    r"\w+",
    """
ai_token allow_lm_batch analysis_only audio_code_string audio_cover_strength audio_duration audio_format batch_size bpm
cfg_interval_end cfg_interval_start chunk_mask_mode constrained_decoding constrained_decoding_debug cover_noise_strength
ctx_audio extract_codes_only full_analysis_only global_caption guidance_scale inference_steps infer_method instruction
is_format_caption key_scale latent_rescale latent_shift lm_backend lm_cfg_scale lm_model_path lm_negative_prompt
lm_repetition_penalty lm_temperature lm_top_k lm_top_p lyrics model prompt ref_audio reference_audio
reference_audio_path repaint_latent_crossfade_frames repaint_mode repaint_strength repaint_wav_crossfade_sec
repainting_end repainting_start sample_mode sample_query sampler_mode seed shift src_audio src_audio_path task_type
thinking time_signature timesteps track_classes track_name use_adg use_cot_caption use_cot_language use_format
use_random_seed use_tiled_decode velocity_ema_factor velocity_norm_threshold vocal_language
""",
)
_LM = "ACE-Step's 5 Hz language model, which is not here"
_DESCRIBED = f"writing a song from a description needs {_LM}"
WITHOUT_EFFECT = {name: to.neutral for name, to in TABLE.items() if to.neutral is not None}


def converted(body: dict[str, Any], uploads: dict[str, str] | None = None) -> Conversion[ReleaseTask]:
    return convert(body, uploads or {}, HELD)


def spec(body: dict[str, Any]) -> GenerationSpec:
    return converted(body).spec()


def warnings(body: dict[str, Any]) -> list[str]:
    written: list[str] = json.loads(record_of(converted(body))["warnings"])
    return written


def test_what_is_left_out_means_the_checkpoints_own_and_two_songs() -> None:
    assert spec({}) == GenerationSpec(variations=2)
    assert warnings({}) == []
    assert record_of(converted({}))["api"] == "acestep-1.5"


# The documentation's own examples, and what it says of them.
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"prompt": "upbeat pop song", "lyrics": "Hello world", "inference_steps": 8},
            {"prompt": "upbeat pop song", "lyrics": "Hello world", "steps": 8, "variations": 2},
        ),
        (
            {"prompt": "jazz piano trio", "timesteps": "0.97,0.76,0.615,0.5,0.395,0.28,0.18,0.085,0"},
            {"timesteps": (0.97, 0.76, 0.615, 0.5, 0.395, 0.28, 0.18, 0.085)},
        ),
        ({"prompt": "x", "model": "acestep-v15-turbo"}, {"model": "acestep-v15-turbo"}),
        ({"key_scale": "C Major", "time_signature": "4"}, {"key_scale": "C major", "time_signature": "4"}),
        ({"key_scale": "Am"}, {"key_scale": "A minor"}),
        ({"use_random_seed": False, "seed": 12345, "batch_size": 1}, {"seed": 12345, "variations": 1}),
        ({"audio_format": "flac"}, {"format": AudioFormat.FLAC}),
        ({"vocal_language": "ja"}, {"vocal_language": "ja"}),
        ({"cfg_interval_start": 0.2, "cfg_interval_end": 0.9}, {"cfg_start": 0.1, "cfg_end": 0.8}),
        ({"cfg_interval_start": 0.5}, {"cfg_start": 0.0, "cfg_end": 0.5}),
        ({"cfg_interval_end": 0.5}, {"cfg_start": 0.5, "cfg_end": 1.0}),
    ],
)
def test_the_documents_examples(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: getattr(spec(body), name) for name in expected} == expected
    assert warnings(body) == []


@pytest.mark.parametrize(
    "body",
    [
        {"audio_duration": 30},
        {"duration": 30},
        {"audioDuration": "30"},
        {"target_duration": 30.0},
        {"targetDuration": 30},
        {"param_obj": {"duration": 30}},
        {"param_obj": '{"duration": 30}'},
        {"metas": {"duration": 30}},
        {"metadata": '{"audio_duration": 30}'},
        {"user_metadata": {"duration": 30}},
        {"userMetadata": {"audioDuration": 30}},
        {"audio_duration": 30, "param_obj": {"duration": 99}, "metas": {"duration": 98}},
        {"audio_duration": None, "param_obj": {"duration": 30}, "metas": {"duration": 98}},
        {"audio_duration": "", "metas": {"duration": 30}},
    ],
)
def test_a_field_under_all_its_names_and_in_all_its_places(body: dict[str, Any]) -> None:
    assert spec(body).duration_s == 30
    assert warnings(body) == []


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"caption": "jazz"}, {"prompt": "jazz"}),
        ({"keyscale": "F# minor"}, {"key_scale": "F# minor"}),
        ({"keyScale": "f#m"}, {"key_scale": "F# minor"}),
        ({"key": "Bb maj"}, {"key_scale": "Bb major"}),
        ({"key": "CM"}, {"key_scale": "C major"}),
        ({"key": "D"}, {"key_scale": "D major"}),
        ({"key": "N/A"}, {"key_scale": None}),
        ({"timeSignature": 3}, {"time_signature": "3"}),
        ({"timesignature": "6/8"}, {"time_signature": "6/8"}),
        ({"language": "pt_BR"}, {"vocal_language": "pt-BR"}),
        ({"vocalLanguage": "unknown"}, {"vocal_language": "unknown"}),
        ({"bpm": "120"}, {"bpm": 120}),
        ({"bpm": 0}, {"bpm": None}),
        ({"bpm": "auto"}, {"bpm": None}),
        ({"inferenceSteps": "12"}, {"steps": 12}),
        ({"guidanceScale": 7}, {"guidance_scale": 7.0}),
        ({"shift": 3.0}, {"shift": 3.0}),
        ({"batchSize": 8}, {"variations": 8}),
        ({"timesteps": [0.9, 0.5]}, {"timesteps": (0.9, 0.5)}),
        ({"timesteps": "0.9,0.5,0.00"}, {"timesteps": (0.9, 0.5)}),
        ({"timesteps": [0.9, 0.5, -0.0]}, {"timesteps": (0.9, 0.5)}),
        ({"timesteps": ""}, {"timesteps": None}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": "7", "useRandomSeed": "false"}, {"seed": 7}),
        ({"seed": 7, "use_random_seed": True}, {"seed": None}),
        ({"seed": -1, "use_random_seed": False}, {"seed": None}),
        ({"seed": "12,13"}, {"seed": 12}),
        ({"seed": "10,99,7", "batch_size": 3}, {"seed": (10, 99, 7)}),
        ({"seed": [10, 99], "batch_size": 2}, {"seed": (10, 99)}),
        ({"seed": "-1,-1", "batch_size": 2}, {"seed": None}),
        ({"instrumental": True}, {"lyrics": "[Instrumental]"}),
        ({"instrumental": True, "lyrics": "[Instrumental]"}, {"lyrics": "[Instrumental]"}),
        ({"instrumental": False, "lyrics": "la"}, {"lyrics": "la"}),
        ({"key": "B-flat Major"}, {"key_scale": "Bb major"}),
        ({"key": "c sharp minor"}, {"key_scale": "C# minor"}),
        ({"key": " e♭ "}, {"key_scale": "E♭ major"}),
        ({"key": "A aeolian"}, {"key_scale": "A minor"}),
        ({"key": "g moll"}, {"key_scale": "G minor"}),
        ({"key": "A natural minor"}, {"key_scale": "A minor"}),
        ({"key": "Key of C"}, {"key_scale": "C major"}),
        ({"time_signature": 4.0}, {"time_signature": "4"}),
        ({"key": "   "}, {"key_scale": None}),
        ({"time_signature": "6/8 "}, {"time_signature": "6/8"}),
        ({"time_signature": "3 / 4 time"}, {"time_signature": "3/4"}),
        ({"vocal_language": "Chinese"}, {"vocal_language": "zh"}),
        ({"vocal_language": "日本語"}, {"vocal_language": "ja"}),
        ({"vocal_language": "nb"}, {"vocal_language": "no"}),
        ({"vocal_language": "nn-NO"}, {"vocal_language": "no-NO"}),
        ({"vocal_language": "auto"}, {"vocal_language": "unknown"}),
        ({"vocal_language": ""}, {"vocal_language": "en"}),
        (
            {"task_type": "repaint", "src_audio_path": "u", "repainting_start": -2, "repainting_end": 0},
            {"repaint_start_s": -2, "repaint_end_s": 0},
        ),
        (
            {"task_type": "repaint", "src_audio_path": "u", "repainting_start": 3, "repainting_end": 8},
            {"repaint_start_s": 3, "repaint_end_s": 8},
        ),
        ({"seed": "12.0", "batch_size": 1}, {"seed": 12}),
        ({"seed": str(MAX_SEED), "batch_size": 1}, {"seed": MAX_SEED}),
        ({"seed": f"{MAX_SEED - 1}.0", "batch_size": 1}, {"seed": MAX_SEED - 1}),
        ({"audio_format": " WAV"}, {"format": AudioFormat.WAV}),
        ({"audioFormat": "ogg"}, {"format": AudioFormat.OGG}),
        ({"modelName": "acestep-v15-turbo"}, {"model": "acestep-v15-turbo"}),
        ({"dit_model": "acestep-v15-turbo"}, {"model": "acestep-v15-turbo"}),
        ({"lora": "choir", "lora_scale": 0.5}, {"lora": "choir", "lora_scale": 0.5}),
        ({"audio_code_string": ["<|audio_code_1|>"]}, {"audio_codes": "<|audio_code_1|>"}),
        ({"audioCodeString": "<|audio_code_1|>", "thinking": True}, {"thinking": False}),
        ({"thinking": True, "lm_temperature": 0.7, "cot_caption": True}, {"thinking": True, "lm_temperature": 0.7}),
        ({"thinking": True, "lm_cfg_scale": 2.5, "lm_top_p": 0.9}, {"lm_cfg_scale": 2.5, "lm_top_p": 0.9}),
        ({"lm_temperature": 0.7, "lm_cfg_scale": 0.0}, {"lm_temperature": None, "lm_cfg_scale": None}),
        ({"use_format": True, "prompt": "a"}, {"prompt": "a", "rewrite": "format"}),
        ({"useFormat": "yes"}, {"rewrite": "format"}),
        ({"format": True}, {"rewrite": "format"}),
    ],
)
def test_a_field_that_is_honoured(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: getattr(spec(sent), name) for name in expected} == expected
    assert warnings(sent) == []


@pytest.mark.parametrize(
    ("sent", "expected", "warned"),
    [
        ({"audio_format": "opus"}, {"format": AudioFormat.OGG}, "audio_format: opus"),
        ({"audio_format": "aac"}, {"format": AudioFormat.M4A}, "audio_format: aac"),
        ({"audio_format": "wav32"}, {"format": AudioFormat.WAV}, "audio_format: wav has 16 bits"),
        ({"audio_duration": -1}, {"duration_s": 60.0}, "audio_duration: is not chosen"),
        ({"bpm": 119.7}, {"bpm": 120}, "bpm: 119.7 is taken for 120"),
        ({"seed": "12,99,7"}, {"seed": (12, 99)}, "seed: 3 seeds for 2 songs"),
        ({"seed": "-1,-1,7", "batch_size": 3}, {"seed": (8, 9, 7)}, "seed: songs without a seed of their own"),
        ({"seed": "10,-1,11", "batch_size": 3}, {"seed": (10, 12, 11)}, "seed: songs without a seed of their own"),
        ({"seed": "10,12", "batch_size": 3}, {"seed": (10, 12, 13)}, "seed: songs without a seed of their own"),
        (
            {"seed": f"{MAX_SEED},0", "batch_size": 3},
            {"seed": (MAX_SEED, 0, 1)},
            "seed: songs without a seed of their own",
        ),
        ({"seed": "12,-1,7", "batch_size": 3}, {"seed": (12, 13, 7)}, "seed: songs without a seed of their own"),
        ({"seed": "12,99", "batch_size": 3}, {"seed": (12, 99, 14)}, "generated with 12 + their number"),
        ({"instrumental": True, "lyrics": "la la"}, {"lyrics": "[Instrumental]"}, "instrumental: is true, so lyrics"),
        ({"key_scale": "D Dorian"}, {"key_scale": "D minor"}, "key_scale: D Dorian is taken for D minor"),
        ({"key_scale": "A harmonic minor"}, {"key_scale": "A minor"}, "A harmonic minor is taken for A minor"),
        ({"key_scale": "C major/A minor"}, {"key_scale": "C major"}, "C major/A minor is taken for C major"),
        ({"key_scale": "C major/loud"}, {"key_scale": None}, "key_scale: C major/loud is no key"),
        ({"key_scale": "F# mixolydian mode"}, {"key_scale": "F# major"}, "is taken for F# major"),
        ({"key_scale": "hirajoshi"}, {"key_scale": None}, "key_scale: hirajoshi is no key"),
        ({"time_signature": "waltz"}, {"time_signature": None}, "time_signature: waltz is no metre"),
        ({"key_scale": f"A{' ' * 990}x"}, {"key_scale": None}, "key_scale: A"),
        ({"time_signature": f"4{' ' * 990}x"}, {"time_signature": None}, "time_signature: 4"),
        ({"vocal_language": "xx"}, {"vocal_language": "unknown"}, "vocal_language: xx is not one of the model's"),
        ({"vocal_language": "Klingon"}, {"vocal_language": "unknown"}, "generated as unknown"),
        ({"model": "acestep-v15-base"}, {"model": None}, "model: acestep-v15-base is not held here"),
        ({"sample_mode": True}, {"prompt": SIMPLE[0].caption, "rewrite": "write"}, "sample_mode: has no wish"),
        ({"thinking": True, "lm_top_p": 0}, {"lm_top_p": 0.01}, "lm_top_p: 0 is taken for 0.01"),
        ({"thinking": True, "cot_caption": False}, {"thinking": True}, "use_cot_caption: a planned song"),
        ({"use_cot_caption": True}, {"thinking": False}, "without effect here: use_cot_caption"),
        ({"format": "wav"}, {"format": AudioFormat.MP3}, "format: stands for use_format"),
        ({"instruction": "Sing it louder:"}, {}, "instruction: has no effect"),
        ({"src_audio_path": "upload-1"}, {"source_audio": None}, "src_audio_path: ignored"),
        ({"metas": {"genres": "rock"}, "colour": "blue"}, {}, "without effect here: colour, genres"),
        ({"metas": '{"bpm": 90'}, {"bpm": None}, "without effect here: metas"),
        ({"param_obj": [{"bpm": 90}]}, {"bpm": None}, "without effect here: param_obj"),
    ],
)
def test_what_is_not_done_as_asked_is_reported(sent: dict[str, Any], expected: dict[str, Any], warned: str) -> None:
    assert {name: getattr(spec(sent), name) for name in expected} == expected
    [warning] = warnings(sent)
    assert warned in warning


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_a_field_without_counterpart_is_reported_only_where_it_asks_for_something_else(name: str) -> None:
    assert warnings({name: "something else"}) == [f"without effect here: {name}"]
    for neutral in WITHOUT_EFFECT[name]:
        assert warnings({name: neutral}) == []
        assert warnings({name: str(neutral).lower()}) == []
    assert spec({name: "something else"}) == spec({})


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"sample_query": "a soft Bengali love song"}, ("a soft Bengali love song", "", "write")),
        ({"description": "a soft song", "lyrics": "la"}, ("a soft song", "la", None)),
        ({"desc": "a soft song", "prompt": "jazz"}, ("a soft song, jazz", "", "write")),
        ({"sampleMode": "1", "prompt": "jazz", "lyrics": "la"}, ("jazz", "la", None)),
        ({"sample_mode": True, "sample_query": "a waltz", "use_format": True}, ("a waltz", "", "write")),
        ({"sample_query": "a waltz", "instrumental": True}, ("a waltz", INSTRUMENTAL, "write")),
        (  # as Wrangler sends it, whose prompt is never empty
            {"prompt": "C Major, 120 BPM", "lyrics": "", "sample_query": "a sad song about rain. "},
            ("a sad song about rain, C Major, 120 BPM", "", "write"),
        ),
    ],
)
def test_a_wish_is_written_by_a_planner_and_lyrics_that_are_sent_are_kept(
    sent: dict[str, Any], expected: tuple[str, str, str | None]
) -> None:
    asked = spec(sent)
    assert (asked.prompt, asked.lyrics, asked.rewrite) == expected
    assert asked.thinking
    assert warnings(sent) == []
    left = asked.rewrite == "write"  # a language that is not sent is the planner's to choose
    assert ("vocal_language" in asked.model_fields_set) is not left
    assert spec({**sent, "language": "en"}).model_fields_set >= {"vocal_language"}


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"analysisOnly": True}, "analysis_only"),
        ({"extract_codes_only": "true"}, "extract_codes_only"),
    ],
)
def test_an_analysis_of_text_or_codes_is_refused(sent: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported, match=r"not analyzed here|not handed out") as caught:
        spec(sent)
    assert caught.value.field == field


def test_a_full_analysis_describes_the_source_and_nothing_else_is_given() -> None:
    sent = {"fullAnalysisOnly": "true", "ctx_audio_path": "upload-1", "audio_duration": 30, "prompt": "x", "bpm": 90}
    asked = spec({**sent, "thinking": True, "lm_temperature": 0.5, "vocal_language": "en", "batch_size": 2})
    wanted = {"task": "describe", "source_audio": "upload-1", "lm_temperature": 0.5}
    assert asked == GenerationSpec.model_validate(wanted)
    assert asked.left_to_text == {"duration_s", "vocal_language"}
    with pytest.raises(InvalidSpec, match="source_audio: task describe needs it"):
        spec({"full_analysis_only": True})


@pytest.mark.parametrize("sent", [{"sample_query": ""}, {"sample_mode": False}, {"analysis_only": "false"}])
def test_what_is_not_asked_for_is_not_refused(sent: dict[str, Any]) -> None:
    assert spec(sent) == spec({})


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"audio_format": "aiff"}, "audio_format"),
        ({"audio_duration": 601}, "audio_duration"),
        ({"audio_duration": float("nan")}, "audio_duration"),
        ({"duration": "long"}, "audio_duration"),
        ({"bpm": 301}, "bpm"),
        ({"bpm": 12}, "bpm"),
        ({"key_scale": "a" * 1_001}, "key_scale"),
        ({"vocal_language": ["en"]}, "vocal_language"),
        ({"instrumental": "perhaps"}, "instrumental"),
        ({"inference_steps": 0}, "inference_steps"),
        ({"inference_steps": 201}, "inference_steps"),
        ({"inference_steps": "many"}, "inference_steps"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"shift": 0}, "shift"),
        ({"cfg_interval_start": 0.9, "cfg_interval_end": 0.1}, "cfg_interval_end"),
        ({"cfg_interval_start": -0.1}, "cfg_interval_start"),
        ({"cfg_interval_end": 1.5}, "cfg_interval_end"),
        ({"cfg_interval_end": float("nan")}, "cfg_interval_end"),
        ({"timesteps": "0.5,0.9"}, "timesteps"),
        ({"timesteps": "fast"}, "timesteps"),
        ({"timesteps": "1.0,0.9999999999"}, "timesteps"),
        ({"audio_code_string": f"<|audio_code_{'9' * 5000}|>"}, "audio_code_string"),
        ({"task_type": "complete", "src_audio_path": "u", "track_classes": ["d!"]}, "track_classes"),
        ({"batch_size": 9}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": "x"}, "seed"),
        ({"seed": 1.7}, "seed"),
        ({"seed": "2,1.7"}, "seed"),
        ({"seed": "1,2,3,4,5,6,7,8,9"}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"seed": 1e400}, "seed"),
        ({"thinking": "perhaps"}, "thinking"),
        ({"task_type": "remix"}, "task_type"),
        ({"task_type": "write"}, "task_type"),  # text has calls of its own
        ({"task_type": "cover"}, "src_audio_path"),
        ({"task_type": "repaint"}, "src_audio_path"),
        ({"task_type": "extract", "src_audio_path": "upload-1"}, "track_name"),
        ({"task_type": "complete", "src_audio_path": "upload-1"}, "track_classes"),
        ({"task_type": "cover", "src_audio_path": "u", "audio_cover_strength": 2}, "audio_cover_strength"),
        ({"task_type": "repaint", "src_audio_path": "u", "repainting_start": -601}, "repainting_start"),
        (
            {"task_type": "repaint", "src_audio_path": "u", "repainting_start": 9, "repainting_end": 3},
            "repainting_end",
        ),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"lyrics": "a" * 16_385}, "lyrics"),
        ({"lora": "../secret"}, "lora"),
        ({"model": "/models/x"}, "model"),
    ],
)
def test_a_value_that_is_refused_names_its_field(sent: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        spec(sent)
    assert theirs(caught.value.message).partition(":")[0].partition(".")[0] == field


@pytest.mark.parametrize("name", ["src_audio_path", "ctx_audio_path", "sourceAudioPath", "ctxAudioPath"])
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ("upload-5c0c1c3f4d5b4a0e8f3f6c7d8e9f0a1b", "upload-5c0c1c3f4d5b4a0e8f3f6c7d8e9f0a1b"),
        (f"{JOB}/1", f"{JOB}/1"),
        (f"{JOB}-1.mp3", f"{JOB}/1"),
        (f"/v1/audio?path={JOB}-1.mp3", f"{JOB}/1"),
        (f"http://host:8019/v1/audio?path={JOB}-0.wav", f"{JOB}/0"),
    ],
)
def test_a_source_is_an_upload_or_an_earlier_song(name: str, sent: str, expected: str) -> None:
    assert spec({"task_type": "cover", name: sent}).source_audio == expected


@pytest.mark.parametrize(
    "path", ["/tmp/song.mp3", "../../etc/passwd", "C:\\song.wav", "http://host/a.wav", "/v1/audio?path=%2Ftmp%2Fa.wav"]
)
@pytest.mark.parametrize("name", ["src_audio_path", "reference_audio_path"])
def test_a_path_is_refused_with_a_reason_and_never_opened(name: str, path: str) -> None:
    with pytest.raises(InvalidSpec, match="never a path") as caught:
        spec({"task_type": "cover", name: path})
    assert caught.value.field == name


def test_a_file_that_came_along_goes_before_a_path() -> None:
    body = {"task_type": "repaint", "src_audio_path": "/tmp/x.mp3", "repainting_start": "1.5", "repainting_end": "-1"}
    spec = converted(body, {"src_audio_path": "fresh"}).spec()
    assert (spec.source_audio, spec.repaint_start_s, spec.repaint_end_s) == ("fresh", 1.5, None)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"task_type": "extract", "track_name": "Vocals"}, {"track": "vocals"}),
        ({"task_type": "EXTRACT", "instruction": "Extract the VOCALS track from the audio:"}, {"track": "vocals"}),
        (
            {"task_type": "lego", "track_name": "bass", "instruction": "Generate the BASS track:"},
            {"track": "bass"},
        ),
        ({"task_type": "lego", "instruction": "Generate the BASS track based on the audio:"}, {"track": "bass"}),
        ({"task_type": "complete", "track_classes": ["drums", "Bass"]}, {"tracks": ("drums", "bass")}),
        ({"task_type": "complete", "trackClasses": "drums,bass"}, {"tracks": ("drums", "bass")}),
        ({"task_type": "complete", "instruments": '["drums"]'}, {"tracks": ("drums",)}),
        (
            {"task_type": "complete", "instruction": "Complete the input track with DRUMS | BASS:"},
            {"tracks": ("drums", "bass")},
        ),
    ],
)
def test_tracks_by_name_or_out_of_the_instruction(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    made = spec({**sent, "src_audio_path": "upload-1"})
    assert {name: getattr(made, name) for name in expected} == expected
    assert warnings({**sent, "src_audio_path": "upload-1"}) == []


@pytest.mark.parametrize("task", ["cover", "repaint", "extract"])
def test_thinking_has_no_effect_there_either_on_tasks_that_work_on_audio(task: str) -> None:
    body = {"task_type": task, "src_audio_path": "upload-1", "track_name": "vocals", "thinking": True}
    assert warnings(body) == []


def test_our_names_become_theirs() -> None:
    assert theirs("duration_s: ignored, the source gives the length") == (
        "audio_duration: ignored, the source gives the length"
    )
    assert theirs("source_audio: task cover needs it, or audio_codes") == (
        "src_audio_path: task cover needs it, or audio_code_string"
    )
    assert {to.ours for to in TABLE.values() if to.ours} <= set(GenerationSpec.model_fields)
    assert set(ReleaseTask.model_fields) <= set(TABLE)


def test_credentials_are_no_field() -> None:
    assert converted({"ai_token": "secret", "prompt": "x"}).ignored == []


def test_every_field_is_in_the_table_of_compatibility() -> None:
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()
    _, _, section = page.partition("### Fields of `POST /release_task`")
    rows = [line for line in section.partition("\n### ")[0].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_*]+)`", row.split(" | ")[0])}
    fields = {*THEIRS, *TABLE}
    assert len(fields) > 65
    assert [field for field in sorted(fields) if not any(fnmatchcase(field, pattern) for pattern in named)] == []


@given(
    st.dictionaries(
        st.sampled_from(sorted(TABLE)) | st.text(max_size=8),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.text(max_size=5)),
        max_size=12,
    )
)
def test_a_request_becomes_a_spec_that_a_worker_can_read_or_is_refused_with_a_reason(body: dict[str, Any]) -> None:
    try:
        made = converted(body).spec()
    except (InvalidSpec, Unsupported) as error:
        assert theirs(error.message)
        return
    assert GenerationSpec.from_wire(made.to_wire()) == made
