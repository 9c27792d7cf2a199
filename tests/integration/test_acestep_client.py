"""A client written from ACE-Step 1.5's API document alone, against real processes with a fast engine."""

from __future__ import annotations

import io
import json
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from tests.smoke import assert_audio
from tests.stack import Stack, running
from tests.unit.dialect_jobs import silence


@dataclass(frozen=True)
class Client:
    """The document's three steps: release, query, download."""

    url: str
    key: str = "any-key"

    def release(self, **params: Any) -> str:
        return str(self.data(self.post("/release_task", json=params))["task_id"])

    def query(self, *task_ids: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.data(self.post("/query_result", json={"task_id_list": list(task_ids)}))
        return entries

    def wait(self, task_id: str, timeout_s: float = 120) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The entry that ended, and all records seen on the way."""
        seen: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            [entry] = self.query(task_id)
            assert entry["task_id"] == task_id
            seen.append(json.loads(entry["result"])[0] | {"progress_text": entry["progress_text"]})
            if entry["status"] in {1, 2}:
                return entry, seen
            time.sleep(0.05)
        raise AssertionError(f"task {task_id} has not ended: {seen[-1]}")

    def songs(self, task_id: str) -> list[dict[str, Any]]:
        entry, _ = self.wait(task_id)
        assert entry["status"] == 1, entry
        records: list[dict[str, Any]] = json.loads(entry["result"])
        return records

    def download(self, file: str) -> bytes:
        # As curl does without -L: a redirect would be an empty file.
        answer = requests.get(f"{self.url}{file}", headers=self.headers, timeout=30, allow_redirects=False)
        assert answer.status_code == 200, answer.text
        return answer.content

    def post(self, path: str, **sent: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}", headers=self.headers, timeout=30, **sent)

    def data(self, answer: requests.Response) -> Any:
        envelope = answer.json()
        assert (answer.status_code, envelope["code"], envelope["error"]) == (200, 200, None), envelope
        return envelope["data"]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    engine = {"SERINETTE_ENGINE_MODULE": "tests.engines", "SERINETTE_SLOTS": "1"}
    with running(tmp_path_factory.mktemp("acestep"), worker=engine) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(fast: Stack) -> Client:
    return Client(fast.url)


@pytest.mark.parametrize(
    ("audio_format", "container"),
    [("mp3", "mp3"), ("wav", "wav"), ("flac", "flac"), ("opus", "ogg"), ("aac", "m4a"), ("wav32", "wav")],
)
def test_every_documented_format_is_generated_polled_and_played(
    client: Client, audio_format: str, container: str
) -> None:
    task_id = client.release(prompt="upbeat pop song", audio_duration=2, audio_format=audio_format, batch_size=1)
    [record] = client.songs(task_id)
    assert record["file"].endswith(f".{container}")
    assert (record["dit_model"], record["metas"]["duration"]) == ("sine", 2.0)
    assert_audio(client.download(record["file"]), container, 2.0)


def test_two_songs_by_default_and_the_same_again_by_their_seed(client: Client) -> None:
    first, second = client.songs(client.release(prompt="x", audio_duration=1, audio_format="wav"))
    seeds = first["seed_value"].split(",")
    assert len(seeds) == 2
    assert client.download(first["file"]) != client.download(second["file"])
    [again] = client.songs(
        client.release(
            prompt="x", audio_duration=1, audio_format="wav", batch_size=1, seed=int(seeds[1]), use_random_seed=False
        )
    )
    assert sound(client.download(again["file"])) == sound(client.download(second["file"]))


def sound(file: bytes) -> bytes:
    """The samples without the tags."""
    with wave.open(io.BytesIO(file)) as reader:
        return bytes(reader.readframes(reader.getnframes()))


def test_progress_is_the_tasks_own_and_only_grows(client: Client) -> None:
    slow = client.release(prompt="slow 4", audio_duration=1, batch_size=1)
    behind = client.release(prompt="slow 1", audio_duration=1, batch_size=1)
    entry, seen = client.wait(slow)
    assert entry["status"] == 1
    progress = [record["progress"] for record in seen]
    assert progress == sorted(progress)
    steps = {record["progress_text"] for record in seen if record["stage"] == "denoising"}
    assert len(steps) > 2, steps
    assert all(text.endswith(" of 8") for text in steps)
    # Meanwhile the other one waited, and said so.
    _, others = client.wait(behind)
    assert others[-1]["progress"] == 1.0


def test_a_waiting_task_does_not_show_another_ones_progress(client: Client) -> None:
    slow = client.release(prompt="slow 3", audio_duration=1, batch_size=1)
    behind = client.release(prompt="x", audio_duration=1, batch_size=1)
    deadline = time.monotonic() + 60
    while json.loads((entries := client.query(slow, behind))[0]["result"])[0]["stage"] != "denoising":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    waiting = json.loads(entries[1]["result"])[0]
    assert (waiting["stage"], waiting["progress"], entries[1]["status"]) == ("queued", 0.0, 0)
    assert entries[1]["progress_text"].startswith("Waiting for ")
    assert client.wait(behind)[0]["status"] == 1


def test_a_failure_says_why(client: Client) -> None:
    entry, _ = client.wait(client.release(prompt="oom", audio_duration=1))
    assert entry["status"] == 2
    assert "memory" in entry["error"]
    assert json.loads(entry["result"])[0]["error"] == entry["error"]


def test_a_running_task_can_be_canceled_by_our_own_call(client: Client) -> None:
    task_id = client.release(prompt="slow 24", audio_duration=1)
    requests.post(f"{client.url}/v1/jobs/{task_id}/cancel", timeout=30).raise_for_status()
    entry, _ = client.wait(task_id)
    assert (entry["status"], entry["error"]) == (2, "the task was canceled")


def test_a_file_is_repainted_and_the_song_covered_in_turn(client: Client) -> None:
    """The document's upload, and what a workstation does with its answer."""
    form = {"prompt": "remix this song", "task_type": "repaint", "batch_size": "1", "audio_format": "wav"}
    task = client.data(client.post("/release_task", data=form, files={"src_audio": ("song.wav", silence(3))}))
    [repainted] = client.songs(task["task_id"])
    assert_audio(client.download(repainted["file"]), "wav", 3.0)
    [covered] = client.songs(
        client.release(
            task_type="cover",
            src_audio_path=repainted["file"],
            audioCoverStrength=0.5,
            batch_size=1,
            audio_format="wav",
        )
    )
    assert_audio(client.download(covered["file"]), "wav", 3.0)


def test_what_is_generated_differently_is_reported_with_the_song(client: Client) -> None:
    body = {"prompt": "electronic dance music", "model": "acestep-v15-turbo", "thinking": True, "guidance_scale": 7.0}
    record = client.songs(client.release(**body, audio_duration=1))[0]
    words = " ".join(record["warnings"])
    assert all(name in words for name in ("model: acestep-v15-turbo", "thinking: ", "guidance_scale: "))
    assert all(warning in record["generation_info"] for warning in record["warnings"])


def test_tasks_outlive_the_gateway(fast: Stack, client: Client) -> None:
    """There: an in-memory queue, lost at every restart."""
    running_id = client.release(prompt="slow 3", audio_duration=1, batch_size=1)
    queued_id = client.release(prompt="x", audio_duration=1, batch_size=1)
    fast.kill("gateway")
    fast.start("gateway")
    fast.wait_health()
    for task_id in (running_id, queued_id):
        [record] = client.songs(task_id)
        assert_audio(client.download(record["file"]), "mp3", 1.0)


def test_statistics_and_models(client: Client) -> None:
    def data_at(path: str) -> Any:
        return client.data(requests.get(f"{client.url}{path}", headers=client.headers, timeout=30))

    before = data_at("/v1/stats")["jobs"]
    client.songs(client.release(prompt="x", audio_duration=1))
    after = data_at("/v1/stats")
    assert after["jobs"] == before | {"total": before["total"] + 1, "succeeded": before["succeeded"] + 1}
    assert after["avg_job_seconds"] > 0
    assert data_at("/v1/model_inventory")["default_model"] == "sine"
    assert requests.get(f"{client.url}/v1/models", timeout=30).json()["data"][0]["id"] == "sine"
    assert data_at("/health")["loaded_model"] == "sine"
