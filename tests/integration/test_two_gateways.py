"""Submit on one gateway; status, cancel, result and events on another: no gateway keeps anything for itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.gateways import HandSlot, RunningGateway
from tests.unit.dialect_jobs import silence

A_SONG = b"song"
http = httpx.Client(timeout=30)


def generate(slot: HandSlot, job_id: str) -> None:
    slot.claim(job_id)
    slot.step(job_id, 1)
    slot.succeed(job_id, [A_SONG])


def json_of(answer: httpx.Response) -> Any:
    assert answer.status_code in {200, 202}, answer.text
    return answer.json()


Both = tuple[RunningGateway, RunningGateway]


def test_v1(two_gateways: Both, slot: HandSlot) -> None:
    one, other = two_gateways
    key = {"Idempotency-Key": "k"}
    job_id = json_of(http.post(f"{one.url}/v1/jobs", json={"prompt": "x"}, headers=key))["id"]
    path = f"{other.url}/v1/jobs/{job_id}"
    again = http.post(f"{other.url}/v1/jobs", json={"prompt": "x"}, headers=key)
    assert (again.json()["id"], again.headers["idempotency-replayed"]) == (job_id, "true")
    assert json_of(http.get(path))["status"] == "queued"
    generate(slot, job_id)
    assert json_of(http.get(path, headers={"Prefer": "wait=5"}))["status"] == "succeeded"
    assert http.get(f"{path}/audio").content == A_SONG
    assert http.delete(path).status_code == 204
    assert http.get(f"{one.url}/v1/jobs/{job_id}").status_code == 404

    canceled = json_of(http.post(f"{one.url}/v1/jobs", json={"prompt": "x"}))["id"]
    assert json_of(http.post(f"{other.url}/v1/jobs/{canceled}/cancel"))["status"] == "canceled"
    assert json_of(http.get(f"{one.url}/v1/jobs/{canceled}"))["status"] == "canceled"


def test_v1_uploads(two_gateways: Both) -> None:
    one, other = two_gateways
    kept = http.post(f"{one.url}/v1/uploads", files={"file": ("a.wav", silence(), "audio/wav")})
    assert kept.status_code == 201, kept.text
    upload_id = kept.json()["id"]
    assert json_of(http.get(f"{other.url}/v1/uploads/{upload_id}"))["duration_s"] == 1
    spec = {"prompt": "x", "task": "cover", "source_audio": upload_id}
    assert json_of(http.post(f"{other.url}/v1/jobs", json=spec))["status"] == "queued"


@pytest.mark.parametrize("kind", ["sse", "websocket"])
def test_events_go_on_behind_the_last_one_seen(two_gateways: Both, slot: HandSlot, kind: str) -> None:
    """The first gateway is left in the middle of the song; the other goes on where it was left."""
    one, other = two_gateways
    job_id = json_of(http.post(f"{one.url}/v1/jobs", json={"prompt": "x"}))["id"]

    def seen(running: RunningGateway, last: str | None, meanwhile: Any) -> Iterator[dict[str, Any]]:
        headers = {"Last-Event-ID": last} if last else {}
        path = f"127.0.0.1:{running.port}/v1/jobs/{job_id}/events"
        if kind == "sse":
            with httpx.stream("GET", f"http://{path}", headers=headers, timeout=30) as answer:
                lines = (line for line in answer.iter_lines() if line.startswith("data: "))
                for number, line in enumerate(lines):
                    meanwhile() if number == 0 else None
                    yield json.loads(line.removeprefix("data: "))
        else:
            with connect(f"ws://{path}", additional_headers=headers) as websocket:
                for number, text in enumerate(websocket):
                    meanwhile() if number == 0 else None
                    yield json.loads(text)

    def begin() -> None:
        slot.claim(job_id)
        slot.step(job_id, 1)
        slot.step(job_id, 2)

    first = seen(one, None, begin)
    got = [next(first) for _ in range(3)]
    first.close()  # type: ignore[attr-defined]  # a generator
    assert [each["type"] for each in got] == ["status", "started", "progress"]
    rest = list(seen(other, got[-1]["id"], lambda: slot.succeed(job_id, [A_SONG])))
    assert [each["type"] for each in rest] == ["status", "progress", "succeeded"]
    assert rest[1]["data"]["step"] == 2


def test_the_seeds_calls(two_gateways: Both, slot: HandSlot) -> None:
    one, other = two_gateways
    request_id = json_of(http.post(f"{one.url}/generate_music_async", json={"prompt": "x"}))["request_id"]
    assert json_of(http.get(f"{other.url}/status/{request_id}"))["status"] == "pending"
    generate(slot, request_id)
    assert json_of(http.get(f"{other.url}/status/{request_id}"))["status"] == "completed"
    assert http.get(f"{other.url}/result/{request_id}").content == A_SONG
    audio_path = json_of(http.get(f"{one.url}/result/{request_id}", params={"format": "json"}))["audio_path"]
    assert http.get(f"{other.url}{audio_path}").content == A_SONG

    canceled = json_of(http.post(f"{one.url}/generate_music_async", json={"prompt": "x"}))["request_id"]
    assert json_of(http.delete(f"{other.url}/request/{canceled}")) == {"message": "Request cancelled"}
    assert json_of(http.get(f"{one.url}/status/{canceled}"))["status"] == "failed"


def test_ace_steps_own_calls(two_gateways: Both, slot: HandSlot) -> None:
    one, other = two_gateways
    task_id = json_of(http.post(f"{one.url}/release_task", json={"prompt": "x"}))["data"]["task_id"]

    def asked(running: RunningGateway) -> Any:
        return json_of(http.post(f"{running.url}/query_result", json={"task_id_list": [task_id]}))["data"][0]

    assert asked(other)["status"] == 0
    generate(slot, task_id)
    assert asked(other)["status"] == 1
    (record,) = json.loads(asked(one)["result"])
    assert http.get(f"{other.url}{record['file']}").content == A_SONG, "a link of one opens at the other"
