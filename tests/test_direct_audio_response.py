"""Songs as bytes, straight from the call that asks for them: python tests/test_direct_audio_response.py [URL]."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.smoke import CONTENT_TYPES, assert_audio, assert_song, ended, fields_of, get, post, run, submitted

BODY = {"audio_duration": 3.0, "prompt": "jazz piano, smooth", "lyrics": "", "infer_step": 8}


def test_every_format_comes_with_its_own_type(server_url: str) -> None:
    for audio_format in CONTENT_TYPES:
        assert_song(post(f"{server_url}/generate_music_direct", BODY | {"format": audio_format}), audio_format, 3.0)


def test_without_a_format_it_is_wav(server_url: str) -> None:
    assert_song(post(f"{server_url}/generate_music_direct", BODY), "wav", 3.0)


def test_return_file_data_makes_generate_music_answer_bytes(server_url: str) -> None:
    assert_song(post(f"{server_url}/generate_music", BODY | {"format": "mp3", "return_file_data": True}), "mp3", 3.0)


def test_return_file_data_describes_the_file_in_the_status(server_url: str) -> None:
    request_id = submitted(server_url, BODY | {"format": "mp3", "return_file_data": True})
    result = ended(server_url, request_id)["result"]
    names = {"success", "content_type", "format", "audio_size_bytes", "params_json", "message"}
    assert set(result) == names, result
    song = get(f"{server_url}/result/{request_id}")
    assert_song(song, "mp3", 3.0)
    assert (result["content_type"], result["format"]) == ("audio/mpeg", "mp3"), result
    assert result["audio_size_bytes"] == len(song.content), result


def test_the_json_result_holds_the_file_where_a_client_asked_for_it(server_url: str) -> None:
    request_id = submitted(server_url, BODY | {"format": "mp3", "return_file_data": True})
    assert ended(server_url, request_id)["status"] == "completed"
    answered = get(f"{server_url}/result/{request_id}", params={"format": "json"}).json()
    assert (answered["success"], answered["format"]) == (True, "mp3"), sorted(answered)
    audio = base64.b64decode(answered["audio"], validate=True)
    assert_audio(audio, "mp3", 3.0)
    assert audio == get(f"{server_url}{answered['audio_path']}").content


def test_the_json_result_is_small_otherwise(server_url: str) -> None:
    request_id = submitted(server_url, BODY)
    assert ended(server_url, request_id)["status"] == "completed"
    answered = get(f"{server_url}/result/{request_id}", params={"format": "json"}).json()
    assert (answered["success"], answered["audio_path"]) == (True, f"/result/{request_id}"), answered
    assert "audio" not in answered
    assert answered["params_json"]["prompt"] == BODY["prompt"], answered


def test_bad_values_are_refused(server_url: str) -> None:
    assert fields_of(post(f"{server_url}/generate_music_direct", {"audio_duration": 601})) == {"audio_duration"}
    assert fields_of(get(f"{server_url}/result/x", params={"format": "exe"})) == {"format"}
    assert fields_of(get(f"{server_url}/result/x", params={"wait": "soon"})) == {"wait"}


if __name__ == "__main__":
    sys.exit(run("test_direct_audio_response", globals()))
