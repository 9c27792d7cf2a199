"""The seed's synchronous calls and those around them: python tests/test_gradio_compatible_api.py [URL]."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import requests

from serinette.media import decode
from tests.smoke import ANSWER_TIMEOUT_S, assert_song, ended, fields_of, get, post, run

# Every field of ACE-Step v1's form, as its clients send them.
WHOLE_FORM: dict[str, Any] = {
    "format": "wav",
    "audio_duration": 5.0,
    "prompt": "acoustic guitar, calm, peaceful",
    "lyrics": "[verse]\nHello world this is a test\n",
    "infer_step": 10,
    "guidance_scale": 15.0,
    "scheduler_type": "dpm_solver_multistep",
    "cfg_type": "apg",
    "omega_scale": 10.0,
    "manual_seeds": "12, 34",
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


def generated(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """What /generate_music answers, and a song where it says one is."""
    answer = post(f"{url}/generate_music", body)
    assert answer.status_code == 200, answer.text
    answered: dict[str, Any] = answer.json()
    assert answered["success"] is True, answered
    assert answered["audio_path"].startswith("/result/"), answered
    assert_song(get(f"{url}{answered['audio_path']}"), body.get("format", "wav"), body["audio_duration"])
    return answered


def test_health_reports_the_model(server_url: str) -> None:
    health = get(f"{server_url}/health").json()
    assert health["status"] == "healthy", health
    assert isinstance(health["pipeline_loaded"], bool), health
    assert {"starting", "loading", "ready", "draining"} >= {worker["stage"] for worker in health["workers"]}, health


def test_initialize_answers_to_query_and_json_alike(server_url: str) -> None:
    settings = {"checkpoint_path": "", "device_id": 0, "bf16": True, "cpu_offload": False}
    loaded = get(f"{server_url}/health").json()["pipeline_loaded"]
    for answer in (post(f"{server_url}/initialize", settings), post(f"{server_url}/initialize", params=settings)):
        assert answer.status_code == 200, answer.text
        answered = answer.json()
        assert answered["success"] is loaded, answered
        assert answered["message" if loaded else "error_message"], answered
    assert fields_of(post(f"{server_url}/initialize", {"device_id": "first"})) == {"device_id"}


def test_the_sample_can_be_generated(server_url: str) -> None:
    answered = get(f"{server_url}/sample_data").json()
    assert answered["success"] is True, answered
    assert {"prompt", "lyrics"} <= set(answered["sample"]), answered
    generated(server_url, answered["sample"] | {"audio_duration": 5.0})


def test_generate_music_answers_with_the_song(server_url: str) -> None:
    answered = generated(server_url, WHOLE_FORM)
    params = answered["params_json"]
    assert params["actual_seeds"] == [12], params
    adjusted = {each["field"] for each in params["adjusted"]}
    # Turbo checkpoints have steps and guidance of their own; which the server holds is not known here.
    assert {"manual_seeds"} <= adjusted <= {"manual_seeds", "infer_step", "guidance_scale"}, params
    assert {"omega_scale", "cfg_type", "scheduler_type", "use_erg_tag"} <= set(params["ignored"]), params
    assert (params["cfg_start"], params["cfg_end"]) == (0.25, 0.75), params
    assert params["sent"]["omega_scale"] == 10.0, params


def test_the_same_seed_is_the_same_song(server_url: str) -> None:
    body = {"audio_duration": 3.0, "prompt": "piano", "lyrics": ""}
    paths = [generated(server_url, body | {"manual_seeds": seed})["audio_path"] for seed in ("77", "77", "78")]
    first, again, other = (decode(BytesIO(get(f"{server_url}{path}").content), 48_000, 2, 600) for path in paths)
    # The files' tags name their jobs; and a busy GPU's batch may move the last bits.
    assert np.abs(first - again).max() < 1e-3
    assert np.abs(first - other).max() > 1e-2


def test_bad_values_are_refused_and_named(server_url: str) -> None:
    bad = {"format": "invalid_format", "audio_duration": -1.0, "infer_step": 0, "guidance_scale": -10.0}
    assert fields_of(post(f"{server_url}/generate_music", bad)) == {"format", "infer_step", "guidance_scale"}


def test_a_song_can_follow_audio_that_comes_along(server_url: str) -> None:
    source = post(f"{server_url}/generate_music_direct", {"audio_duration": 5.0, "format": "mp3"})
    assert_song(source, "mp3", 5.0)
    # As `requests` sends a form: everything is text, booleans are Python's.
    form = {"format": "wav", "audio_duration": 30.0, "prompt": "remix", "ref_audio_strength": 0.7, "use_erg_tag": True}
    answer = requests.post(
        f"{server_url}/generate_music_with_audio",
        data={**form, "return_file_data": False},
        files={"audio_file": ("source.mp3", source.content, "audio/mpeg")},
        timeout=ANSWER_TIMEOUT_S,
    )
    assert answer.status_code == 200, answer.text
    answered = answer.json()
    assert (set(answered), answered["success"]) == ({"success", "request_id", "message"}, True), answered
    status = ended(server_url, answered["request_id"])
    assert status["status"] == "completed", status
    params = status["result"]["params_json"]
    assert (params["task"], params["ref_audio_strength"]) == ("cover", 0.7), params
    assert [each["field"] for each in params["adjusted"]] == ["audio_duration"], params
    assert_song(get(f"{server_url}/result/{answered['request_id']}"), "wav", None)


def test_a_text_file_called_song_is_no_audio(server_url: str) -> None:
    url = f"{server_url}/generate_music_with_audio"
    files = {"audio_file": ("song.mp3", b"these are only words\n" * 50, "audio/mpeg")}
    answer = requests.post(url, data={"prompt": "x"}, files=files, timeout=ANSWER_TIMEOUT_S)
    assert fields_of(answer) == {"audio_file"}
    assert fields_of(requests.post(url, data={"prompt": "x"}, timeout=60)) == {"audio_file"}
    assert fields_of(requests.post(url, data={"infer_step": "many"}, files=files, timeout=60)) == {"infer_step"}


if __name__ == "__main__":
    sys.exit(run("test_gradio_compatible_api", globals()))
