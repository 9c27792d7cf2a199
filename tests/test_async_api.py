"""The seed's asynchronous calls, on any running server: python tests/test_async_api.py [URL]."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import requests

from tests.smoke import assert_song, ended, fields_of, get, post, run, submitted


def test_one_song_from_request_to_file(server_url: str) -> None:
    """The seed document's first example, with what it takes for granted looked at."""
    body = {"format": "mp3", "audio_duration": 15.0, "prompt": "jazz piano, smooth", "infer_step": 8}
    request_id = submitted(server_url, body)
    status = ended(server_url, request_id)
    assert status["status"] == "completed", status
    assert 0 < status["created_at"] <= status["started_at"] <= status["completed_at"], status

    result = status["result"]
    assert set(result) == {"success", "audio_path", "params_json"}, result
    assert result["success"] is True
    params = result["params_json"]
    assert params["sent"] == {name: value for name, value in body.items() if name != "prompt"}, params
    assert (params["prompt"], params["infer_step"]) == ("jazz piano, smooth", 8), params
    assert isinstance(params["actual_seeds"][0], int), params

    assert_song(get(f"{server_url}/result/{request_id}"), "mp3", 15.0)
    assert_song(get(f"{server_url}{result['audio_path']}"), "mp3", 15.0)


def test_three_songs_at_once(server_url: str) -> None:
    """The seed document's second example."""
    prompts = [f"music style {number}" for number in (1, 2, 3)]
    request_ids = [submitted(server_url, {"prompt": prompt, "audio_duration": 5.0}) for prompt in prompts]
    assert len(set(request_ids)) == 3
    for request_id, prompt in zip(request_ids, prompts, strict=True):
        status = ended(server_url, request_id)
        assert status["status"] == "completed", status
        assert status["result"]["params_json"]["prompt"] == prompt
        assert_song(get(f"{server_url}/result/{request_id}"), "wav", 5.0)


def test_result_can_be_waited_for(server_url: str) -> None:
    """One call instead of a loop: it holds, and follows its own redirects."""
    request_id = submitted(server_url, {"audio_duration": 5.0, "format": "flac"})
    assert_song(get(f"{server_url}/result/{request_id}", params={"wait": 50}), "flac", 5.0)


def test_the_queue_is_counted(server_url: str) -> None:
    before = get(f"{server_url}/queue/status").json()
    assert set(before) == {"queue_size", "status_counts", "total_requests"}, before
    assert set(before["status_counts"]) == {"pending", "processing", "completed", "failed"}, before
    ended(server_url, submitted(server_url, {"audio_duration": 2.0}))
    after = get(f"{server_url}/queue/status").json()
    assert after["total_requests"] >= before["total_requests"] + 1, (before, after)
    assert sum(after["status_counts"].values()) == after["total_requests"], after


def test_cancel_ends_a_request(server_url: str) -> None:
    """Four minutes of song in two hundred steps: canceled long before it is generated, wherever it is by then."""
    body = {"audio_duration": 240.0, "infer_step": 200}
    request_ids = [submitted(server_url, body) for _ in range(4)]
    early = get(f"{server_url}/result/{request_ids[-1]}")
    assert early.status_code == 400, early.text
    assert early.json()["detail"] in {f"Request is {word}, not completed" for word in ("pending", "processing")}
    for request_id in reversed(request_ids):
        answer = requests.delete(f"{server_url}/request/{request_id}", timeout=60)
        assert (answer.status_code, answer.json()) == (200, {"message": "Request cancelled"}), answer.text
    for request_id in request_ids:
        status = ended(server_url, request_id)
        assert (status["status"], status["error"]) == ("failed", "Cancelled by user"), status
        late = get(f"{server_url}/result/{request_id}")
        assert (late.status_code, late.json()["detail"]) == (400, "Request is failed, not completed")
        again = requests.delete(f"{server_url}/request/{request_id}", timeout=60)
        assert (again.status_code, again.json()) == (400, {"detail": "Cannot cancel request in failed status"})


def test_what_is_done_cannot_be_canceled(server_url: str) -> None:
    request_id = submitted(server_url, {"audio_duration": 2.0})
    assert ended(server_url, request_id)["status"] == "completed"
    answer = requests.delete(f"{server_url}/request/{request_id}", timeout=60)
    assert (answer.status_code, answer.json()) == (400, {"detail": "Cannot cancel request in completed status"})
    assert_song(get(f"{server_url}/result/{request_id}"), "wav", 2.0)


def test_an_unknown_id_is_not_found(server_url: str) -> None:
    for request_id in (str(uuid.uuid4()), "no-such-request", "a%00b", "x" * 2_000):
        answers = [get(f"{server_url}/status/{request_id}"), get(f"{server_url}/result/{request_id}")]
        answers.append(requests.delete(f"{server_url}/request/{request_id}", timeout=60))
        answers.append(get(f"{server_url}/result/{request_id}", params={"wait": 50, "format": "json"}))
        for answer in answers:
            assert answer.status_code == 404, answer.text
            assert answer.json()["detail"] in {"Request not found", "Not Found"}, answer.text


def test_a_bad_body_is_refused_and_its_field_named(server_url: str) -> None:
    url = f"{server_url}/generate_music_async"
    assert fields_of(post(url, {"infer_step": 0})) == {"infer_step"}
    assert fields_of(post(url, {"format": "exe", "guidance_scale": -10})) == {"format", "guidance_scale"}
    assert fields_of(post(url, {"audio_duration": "long"})) == {"audio_duration"}
    assert fields_of(post(url, {"audio2audio_enable": True, "ref_audio_input": "/etc/passwd"})) == {"ref_audio_input"}
    assert fields_of(post(url, {"lora_name_or_path": "../lora"})) == {"lora_name_or_path"}
    broken = requests.post(url, data=b"{", headers={"Content-Type": "application/json"}, timeout=60)
    assert broken.status_code == 422, broken.text


if __name__ == "__main__":
    sys.exit(run("test_async_api", globals()))
