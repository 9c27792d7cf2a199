"""Two tenants at two gateways: neither sees, cancels, downloads or collides with what is the other's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from redis import Redis
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from serinette import credentials
from serinette.client import Client
from serinette.errors import NotFound, Unauthorized
from serinette.job import now
from serinette.jobs import calls
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.gateways import HandSlot, RunningGateway, gateway
from tests.processes import eventually
from tests.unit.sounds import silence
from tests.unit.tenants import bearing, key_of

SONG = {"prompt": "jazz", "duration_s": 15}
UNKNOWN_ID = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"


@dataclass(frozen=True, slots=True)
class TwoTenants:
    """Two gateways and two keys; what is sent goes to the second gateway, for the state must be shared."""

    one: RunningGateway
    two: RunningGateway
    mine: str
    theirs: str

    def send(self, key: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {**bearing(key), **more.pop("headers", {})}
        return httpx.request(method, f"{self.two.url}{path}", headers=headers, timeout=30, **more)

    def submit(self, key: str, **song: Any) -> str:
        answer = httpx.post(f"{self.one.url}/v1/jobs", json={**SONG, **song}, headers=bearing(key))
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id


@pytest.fixture(scope="module")
def redis(valkey_url: str) -> Iterator[Redis]:
    with Redis.from_url(valkey_url) as client:
        yield client


@pytest.fixture(scope="module")
def tenants(
    valkey_url: str, redis: Redis, tmp_path_factory: pytest.TempPathFactory, store_url: str
) -> Iterator[TwoTenants]:
    directory = tmp_path_factory.mktemp("gateways")
    mine, theirs = key_of(redis, "mine"), key_of(redis, "theirs")
    settings: dict[str, object] = {"auth": True, "key_in_path": True, "log_level": "DEBUG", "max_wait_s": 20}
    with (
        gateway(directory, valkey_url, store_url, **settings) as one,
        gateway(directory, valkey_url, store_url, **settings) as two,
    ):
        yield TwoTenants(one, two, mine, theirs)
        # Whichever tests ran: at DEBUG the server logs the headers of a WebSocket, and so a key.
        with suppress(InvalidStatus), connect(f"ws://127.0.0.1:{one.port}/v1/events", additional_headers=bearing(mine)):
            pass
        logs = one.log.read_text() + two.log.read_text()
        assert not [key for key in (mine, theirs) if key.split("_", 2)[2] in logs]
        assert "token=" not in logs.replace("token=***", "")
        assert "_***" in logs  # they were there, and were taken out


@pytest.fixture
def slot(redis: Redis, store_url: str) -> HandSlot:
    return HandSlot(redis, Store.open(SharedSettings.model_validate({"store_url": store_url})))


def generated_job(tenants: TwoTenants, slot: HandSlot) -> str:
    job_id = tenants.submit(tenants.mine)
    slot.claim(job_id)
    slot.succeed(job_id, [b"my song"], tenant="mine")
    return job_id


BY_ID = [
    ("GET", "/v1/jobs/{}"),
    ("GET", "/v1/jobs/{}/audio"),
    ("HEAD", "/v1/jobs/{}/audio"),
    ("GET", "/v1/jobs/{}/events"),
    ("POST", "/v1/jobs/{}/links"),
    ("POST", "/v1/jobs/{}/cancel"),
    ("DELETE", "/v1/jobs/{}"),
    ("GET", "/status/{}"),
    ("GET", "/result/{}"),
    ("GET", "/result/{}?format=json"),
    ("DELETE", "/request/{}"),
]


@pytest.mark.parametrize(("method", "path"), BY_ID)
def test_another_tenants_job_is_answered_like_an_unknown_job(
    tenants: TwoTenants, slot: HandSlot, method: str, path: str
) -> None:
    for job_id in (generated_job(tenants, slot), tenants.submit(tenants.mine)):
        seen = tenants.send(tenants.theirs, method, path.format(job_id))
        nothing = tenants.send(tenants.theirs, method, path.format(UNKNOWN_ID))
        assert seen.status_code == nothing.status_code == 404
        assert seen.text.replace(job_id, UNKNOWN_ID) == nothing.text
        job = tenants.send(tenants.mine, "GET", f"/v1/jobs/{job_id}").json()
        assert job["status"] in {"succeeded", "queued"}
        assert not job["cancel_requested"]


def test_lists_are_parted(tenants: TwoTenants, slot: HandSlot) -> None:
    job_id = generated_job(tenants, slot)
    assert job_id in tenants.send(tenants.mine, "GET", "/v1/jobs").text
    assert job_id not in tenants.send(tenants.theirs, "GET", "/v1/jobs?limit=100").text
    tenants.submit(tenants.mine)
    cursor = tenants.send(tenants.mine, "GET", "/v1/jobs?limit=1").json()["next_cursor"]
    mine = {job["id"] for job in tenants.send(tenants.mine, "GET", "/v1/jobs?limit=100").json()["jobs"]}
    theirs = tenants.send(tenants.theirs, "GET", f"/v1/jobs?cursor={cursor}&limit=100").json()["jobs"]
    assert not mine & {job["id"] for job in theirs}


def test_one_idempotency_key_of_two_tenants_is_two_jobs(tenants: TwoTenants) -> None:
    headers = {"Idempotency-Key": "song-1"}
    mine = tenants.send(tenants.mine, "POST", "/v1/jobs", json=SONG, headers=headers)
    theirs = tenants.send(tenants.theirs, "POST", "/v1/jobs", json={**SONG, "prompt": "other"}, headers=headers)
    assert (mine.status_code, theirs.status_code) == (202, 202)
    assert mine.json()["id"] != theirs.json()["id"]
    again = tenants.send(tenants.mine, "POST", "/v1/jobs", json=SONG, headers=headers)
    assert (again.json()["id"], again.headers["Idempotency-Replayed"]) == (mine.json()["id"], "true")


def test_uploads_and_songs_of_another_are_no_source(tenants: TwoTenants, slot: HandSlot) -> None:
    body = silence(60)
    upload_id = tenants.send(tenants.mine, "POST", "/v1/uploads", content=body).json()["id"]
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/complete")]:
        assert tenants.send(tenants.theirs, method, f"/v1/uploads/{upload_id}{path}").status_code == 404
    for source in (upload_id, f"{generated_job(tenants, slot)}/0"):
        song = {**SONG, "task": "cover", "source_audio": source}
        assert tenants.send(tenants.theirs, "POST", "/v1/jobs", json=song).status_code == 422
        assert tenants.send(tenants.mine, "POST", "/v1/jobs", json=song).status_code == 202
        seeds = {"prompt": "x", "ref_audio_input": source, "audio2audio_enable": True}
        assert tenants.send(tenants.theirs, "POST", "/generate_music_async", json=seeds).status_code == 422
    for path in (f"../../mine/{upload_id}", f"..%2Fmine%2F{upload_id}"):
        assert tenants.send(tenants.theirs, "GET", f"/v1/uploads/{path}").status_code == 404


def test_event_streams_are_parted_on_websockets_too(tenants: TwoTenants, slot: HandSlot) -> None:
    job_id = generated_job(tenants, slot)
    url = f"ws://127.0.0.1:{tenants.two.port}/v1/jobs/{job_id}/events"
    for headers, status in [({}, 401), (bearing(tenants.theirs), 404), (bearing(tenants.mine + "x"), 401)]:
        with pytest.raises(InvalidStatus) as denied, connect(url, additional_headers=headers):
            pass
        assert denied.value.response.status_code == status
    with connect(url, additional_headers=bearing(tenants.mine)) as socket:
        assert [json.loads(message)["type"] for message in socket][-1] == "succeeded"


def test_a_browser_listens_and_plays_by_links(tenants: TwoTenants, slot: HandSlot) -> None:
    job_id = generated_job(tenants, slot)
    links = tenants.send(tenants.mine, "POST", f"/v1/jobs/{job_id}/links").json()
    with connect(f"ws://127.0.0.1:{tenants.one.port}{links['events']}") as socket:
        assert [json.loads(message)["type"] for message in socket][-1] == "succeeded"
    assert "event: succeeded" in httpx.get(f"{tenants.one.url}{links['events']}").text
    part = httpx.get(f"{tenants.one.url}{links['audio']}", headers={"Range": "bytes=0-1"})
    assert (part.status_code, part.content) == (206, b"my")
    token = links["audio"].partition("?")[2]
    theirs = tenants.submit(tenants.theirs)
    for path in (f"/v1/jobs/{theirs}/events", f"/v1/jobs/{theirs}/audio", f"/v1/jobs/{job_id}"):
        assert httpx.get(f"{tenants.one.url}{path}?{token}").status_code == 401


def test_a_seed_client_without_headers_gets_its_song_through_the_redirects(tenants: TwoTenants, slot: HandSlot) -> None:
    base = f"{tenants.one.url}/k/{tenants.mine}"
    done: list[requests.Response] = []

    def order() -> None:
        done.append(requests.post(f"{base}/generate_music_direct", json={"prompt": "seed"}, timeout=60))

    before = {job["id"] for job in tenants.send(tenants.mine, "GET", "/v1/jobs?limit=100").json()["jobs"]}
    client = threading.Thread(target=order)
    client.start()

    def ordered() -> list[str]:
        jobs = tenants.send(tenants.mine, "GET", "/v1/jobs?limit=100").json()["jobs"]
        return [job["id"] for job in jobs if job["id"] not in before]

    assert eventually(lambda: bool(ordered()), 30)
    client.join(25)  # past the longest wait of one request: the client is being redirected
    slot.claim(ordered()[0])
    slot.succeed(ordered()[0], [b"a song by redirect"], tenant="mine")
    client.join(30)
    assert done[0].content == b"a song by redirect"
    assert done[0].history
    for redirect in done[0].history:
        assert tenants.mine not in redirect.headers["Location"]


def test_what_only_the_store_remembers_is_parted(tenants: TwoTenants, slot: HandSlot) -> None:
    job_id = generated_job(tenants, slot)
    slot.record(job_id)
    reported = tenants.send(tenants.mine, "GET", f"/v1/jobs/{job_id}").json()["usage"]
    assert slot.jobs(calls.erase(job_id, "mine"))
    for method, path in BY_ID:
        assert tenants.send(tenants.theirs, method, path.format(job_id)).status_code == 404, path
    kept = tenants.send(tenants.mine, "GET", f"/v1/jobs/{job_id}").json()
    assert kept["usage"] == {**reported, "queue_s": pytest.approx(reported["queue_s"], abs=0.001)}
    assert (kept["usage"]["gpu_s"], kept["usage"]["size_bytes"]) == (1.0, 7)
    assert tenants.send(tenants.mine, "GET", f"/v1/jobs/{job_id}/audio").content == b"my song"


def test_a_revoked_key_is_refused_by_all_gateways_within_seconds(tenants: TwoTenants, redis: Redis) -> None:
    key = key_of(redis, "mine")
    urls = [f"{running.url}/v1/jobs" for running in (tenants.one, tenants.two)]
    for url in urls:
        assert httpx.get(url, headers=bearing(key)).status_code == 200
    credentials.revoke(redis, Keys(), str(credentials.id_of(key)))
    assert eventually(lambda: {httpx.get(url, headers=bearing(key)).status_code for url in urls} == {401}, 15)


def test_the_client_sends_its_key(tenants: TwoTenants, slot: HandSlot, tmp_path: Path) -> None:
    job_id = generated_job(tenants, slot)
    with (
        Client(tenants.one.url, api_key=tenants.mine) as mine,
        Client(tenants.one.url, api_key=tenants.theirs) as theirs,
    ):
        assert mine.download(job_id, tmp_path / "song.mp3") == 7
        with pytest.raises(NotFound):
            theirs.get(job_id)
        assert mine.usage(now().date(), now().date()).total.succeeded >= 1
    with Client(f"{tenants.one.url}/k/{tenants.mine}") as by_path, Client(tenants.one.url) as keyless:
        assert by_path.get(job_id).id == job_id
        with pytest.raises(Unauthorized):
            keyless.get(job_id)


def test_a_gateway_that_anyone_reaches_does_not_start_without_keys(valkey_url: str, store_url: str) -> None:
    environment = {**os.environ, "SERINETTE_REDIS_URL": valkey_url, "SERINETTE_STORE_URL": store_url}
    started = subprocess.run(
        [sys.executable, "-m", "api"],
        env={**environment, "SERINETTE_HOST": "0.0.0.0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.returncode == 2
    assert "SERINETTE_AUTH" in started.stderr
    assert "Traceback" not in started.stderr
