"""Clients written from the seed's document alone, unchanged, against a real stack; then what can go wrong."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from redis import Redis

from tests.gateways import gateway
from tests.smoke import assert_audio, assert_song, ended, fields_of, get, post, submitted
from tests.stack import Stack, running
from tests.unit.dialect_jobs import silence
from tests.unit.tenants import key_of

# The document's two examples to the letter, but for the server's address. They loop without an end of their own:
# that they end is what is tested (the suite's timeout would show it).
ONE_SONG = """
import requests
import time

# 1. 非同期リクエスト送信
response = requests.post("http://localhost:8019/generate_music_async", json={
    "format": "mp3",
    "audio_duration": 15.0,
    "prompt": "jazz piano, smooth",
    "infer_step": 20
})

request_id = response.json()["request_id"]

# 2. ステータス監視
while True:
    status = requests.get(f"http://localhost:8019/status/{request_id}").json()
    if status["status"] == "completed":
        break
    time.sleep(2)

# 3. 結果取得
result = requests.get(f"http://localhost:8019/result/{request_id}")
with open("music.mp3", "wb") as f:
    f.write(result.content)
"""

THREE_SONGS = """
# 複数のリクエストを送信
request_ids = []
for i in range(3):
    response = requests.post("http://localhost:8019/generate_music_async", json={
        "prompt": f"music style {i+1}",
        "audio_duration": 10.0
    })
    request_ids.append(response.json()["request_id"])

# 全完了を待機
for request_id in request_ids:
    while True:
        status = requests.get(f"http://localhost:8019/status/{request_id}").json()
        if status["status"] in ["completed", "failed"]:
            break
        time.sleep(1)
"""


def run_example(text: str, url: str) -> dict[str, Any]:
    """Run an example of the document; the names it leaves behind."""
    names: dict[str, Any] = {"requests": requests, "time": time}
    exec(text.replace("http://localhost:8019", url), names)
    return names


def test_the_documents_first_example_ends_with_an_mp3(
    server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_example(ONE_SONG, server_url)
    assert_audio((tmp_path / "music.mp3").read_bytes(), "mp3", 15.0)


def test_the_documents_second_example_ends_with_three_songs(server_url: str) -> None:
    names = run_example(THREE_SONGS, server_url)
    assert len(set(names["request_ids"])) == 3
    for number, request_id in enumerate(names["request_ids"], 1):
        status = get(f"{server_url}/status/{request_id}").json()
        assert status["status"] == "completed", status
        assert status["result"]["params_json"]["prompt"] == f"music style {number}"
        assert_song(get(f"{server_url}/result/{request_id}"), "wav", 10.0)


# The Japanese page for those who move here: its last block needs a gateway that asks for keys.
*BLOCKS, KEY_IN_PATH = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "migration.ja.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_migration_page(
    server_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_example(BLOCKS[number], server_url)
    assert names["BASE_URL"] == server_url
    for song in tmp_path.glob("*.mp3"):
        assert_audio(song.read_bytes(), "mp3", 5.0)


def test_the_migration_page_on_keys_in_a_path(
    tmp_path: Path, redis_url: str, redis: Redis, file_store_url: str
) -> None:
    key = key_of(redis, "acme")
    with gateway(tmp_path, redis_url, file_store_url, auth=True, key_in_path=True) as running:
        run_example(KEY_IN_PATH.replace("srn_your_key", key), running.url)
        with pytest.raises(requests.HTTPError, match="401"):
            run_example(KEY_IN_PATH, running.url)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One slot, and calls that wait for a second only."""
    with running(
        tmp_path_factory.mktemp("slow"),
        gateway={"SERINETTE_MAX_WAIT_S": "1"},
        worker={"SERINETTE_ENGINE_MODULE": "tests.engines", "SERINETTE_SLOTS": "1"},
    ) as stack:
        yield stack


# To the engine of sines: it goes on until it is canceled.
LONG = {"audio_duration": 3.0, "prompt": "until never"}


def canceled(url: str, request_id: str) -> None:
    answer = requests.delete(f"{url}/request/{request_id}", timeout=60)
    assert (answer.status_code, answer.json()) == (200, {"message": "Request cancelled"}), answer.text
    status = ended(url, request_id)
    assert (status["status"], status["error"]) == ("failed", "Cancelled by user"), status
    assert status["completed_at"] is not None


def until_processing(url: str, request_id: str) -> None:
    deadline = time.monotonic() + 60
    while get(f"{url}/status/{request_id}").json()["status"] != "processing":
        assert time.monotonic() < deadline, "never processing"
        time.sleep(0.05)


def test_a_json_call_longer_than_the_wait_keeps_its_shape(slow: Stack) -> None:
    blocker = submitted(slow.url, LONG)
    until_processing(slow.url, blocker)
    threading.Timer(1.5, lambda: requests.delete(f"{slow.url}/request/{blocker}", timeout=60)).start()
    answer = requests.post(f"{slow.url}/generate_music", json={"audio_duration": 3.0, "prompt": "x"}, timeout=60)
    assert answer.history, "it was to be redirected"
    assert all("format=json" in each.headers["Location"] for each in answer.history)
    reported = answer.json()
    assert reported["success"] is True, reported
    assert reported["params_json"]["prompt"] == "x"
    assert_song(get(f"{slow.url}{reported['audio_path']}"), "wav", 3.0)


def test_a_client_that_stops_waiting_still_finds_the_song(slow: Stack) -> None:
    before = {job["id"] for job in get(f"{slow.url}/v1/jobs").json()["jobs"]}
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{slow.url}/generate_music_direct", json={"audio_duration": 20.0}, timeout=0.1)
    deadline = time.monotonic() + 30
    while not (new := {job["id"] for job in get(f"{slow.url}/v1/jobs").json()["jobs"]} - before):
        assert time.monotonic() < deadline, "the job was lost"
        time.sleep(0.1)
    assert ended(slow.url, new.pop())["status"] == "completed"


def test_no_path_of_a_client_is_opened_or_erased(slow: Stack, tmp_path: Path) -> None:
    mine = tmp_path / "mine.wav"
    mine.write_bytes(silence())
    for path in (str(mine), f"/tmp/../{mine}", f"file://{mine}"):
        body = {"audio2audio_enable": True, "ref_audio_input": path}
        assert fields_of(post(f"{slow.url}/generate_music_async", body)) == {"ref_audio_input"}
        ignored = post(f"{slow.url}/generate_music", {"audio_duration": 1.0, "ref_audio_input": path}).json()
        assert "ref_audio_input" in ignored["params_json"]["ignored"], ignored
    assert mine.read_bytes() == silence()
