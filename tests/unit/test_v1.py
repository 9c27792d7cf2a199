"""Our own API in this process, on a real Valkey: answers, problems, and what hostile clients send."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from api.app import create_app
from api.settings import GatewaySettings
from serinette.errors import StoreUnavailable
from serinette.job import JobError, now
from serinette.names import Keys
from serinette.presence import Presence, WorkerStage, announce, record_pace
from serinette.store import Store
from tests.gateways import HandSlot, problem
from tests.unit.queue_harness import model

SONG = {"prompt": "jazz piano, smooth", "duration_s": 15}
NO_JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"


pytestmark = pytest.mark.shared_valkey


@pytest.fixture
def settings(redis_url: str, file_store_url: str) -> GatewaySettings:
    origins = ("https://studio.example",)
    return GatewaySettings.model_validate(
        {
            "redis_url": redis_url,
            "store_url": file_store_url,
            "cors_origins": origins,
            "max_wait_s": 5,
            "hosts": ("elsewhere.example",),
        }
    )


@pytest.fixture
def app(settings: GatewaySettings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


@pytest.fixture
def slot(redis: Redis, settings: GatewaySettings) -> HandSlot:
    return HandSlot(redis, Store.open(settings))


async def test_submit_look_cancel_erase(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/jobs", json={**SONG, "lane": "high", "labels": {"album": "blue"}, "timeout_s": 60})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert "idempotency-replayed" not in answer.headers
    assert (job["status"], job["lane"], job["labels"], job["timeout_s"]) == ("queued", "high", {"album": "blue"}, 60)
    assert job["spec"]["prompt"] == SONG["prompt"]
    assert job["waiting_for"] == "a worker: none is up in pool default"
    assert "dialect" not in job

    looked = await http.get(f"/v1/jobs/{job['id']}")
    assert (looked.status_code, looked.json()["id"], looked.json()["position"]) == (200, job["id"], 1)
    listed = (await http.get("/v1/jobs", params={"label": "album=blue", "status": "queued"})).json()
    assert [found["id"] for found in listed["jobs"]] == [job["id"]]
    assert listed["next_cursor"] is None
    for edge in ("created_before=0001-01-01T00:00:00%2B14:00", "created_after=9999-12-31T23:59:59-14:00"):
        assert (await http.get(f"/v1/jobs?{edge}")).json()["jobs"] == []

    assert problem(await http.delete(f"/v1/jobs/{job['id']}"))["code"] == "not_finished"
    assert (await http.post(f"/v1/jobs/{job['id']}/cancel")).json()["status"] == "canceled"
    gone = problem(await http.get(f"/v1/jobs/{job['id']}/audio"))
    assert (gone["status"], gone["code"]) == (410, "gone")
    assert (await http.delete(f"/v1/jobs/{job['id']}")).status_code == 204
    assert problem(await http.get(f"/v1/jobs/{job['id']}"))["status"] == 404


async def test_a_key_is_replayed(http: httpx.AsyncClient, slot: HandSlot) -> None:
    headers = {"Idempotency-Key": "order 66"}
    first = await http.post("/v1/jobs", json=SONG, headers=headers)
    again = await http.post("/v1/jobs", json=SONG, headers=headers)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (202, "true")
    assert again.json()["id"] == first.json()["id"]
    other = problem(await http.post("/v1/jobs", json={"prompt": "rock"}, headers=headers))
    assert (other["status"], other["code"], other["field"]) == (409, "idempotency_conflict", "Idempotency-Key")
    slot.claim(first.json()["id"])
    slot.succeed(first.json()["id"], [b"song"])
    ended = await http.post("/v1/jobs", json=SONG, headers=headers)
    assert (ended.status_code, ended.json()["status"]) == (200, "succeeded")


async def test_prefer_wait_holds_the_answer(http: httpx.AsyncClient, slot: HandSlot) -> None:
    headers = {"Prefer": "wait=4", "Idempotency-Key": "k"}
    job_id = (await http.post("/v1/jobs", json=SONG, headers={"Idempotency-Key": "k"})).json()["id"]
    held = asyncio.create_task(http.post("/v1/jobs", json=SONG, headers=headers))
    looking = asyncio.create_task(http.get(f"/v1/jobs/{job_id}", headers=headers))
    await asyncio.sleep(0.3)
    assert not held.done()
    slot.claim(job_id)
    slot.succeed(job_id, [b"song"])
    answer = await held
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=4"
    assert (await looking).json()["status"] == "succeeded"
    waiting = await http.post("/v1/jobs", json=SONG, headers={"Prefer": "wait=1"})
    assert (waiting.status_code, waiting.json()["status"]) == (202, "queued")


async def test_a_failed_job_has_no_song(http: httpx.AsyncClient, slot: HandSlot) -> None:
    job_id = (await http.post("/v1/jobs", json=SONG)).json()["id"]
    running = problem(await http.get(f"/v1/jobs/{job_id}/audio"))
    assert (running["status"], running["code"]) == (409, "not_finished")
    slot.claim(job_id)
    slot.fail(job_id, JobError(code="out_of_memory", message="the song does not fit"))
    failed = problem(await http.get(f"/v1/jobs/{job_id}/audio"))
    assert (failed["status"], failed["code"]) == (410, "gone")
    assert "does not fit" in failed["detail"]
    assert problem(await http.post(f"/v1/jobs/{job_id}/cancel"))["code"] == "conflict"


async def test_a_list_invents_nothing_of_jobs_that_ended_a_while_ago(http: httpx.AsyncClient, slot: HandSlot) -> None:
    song: dict[str, Any] = {"prompt": "long " * 40, "duration_s": 240, "seed": 7, "format": "flac", "timeout_s": 99}
    job_id = (await http.post("/v1/jobs", json=song)).json()["id"]
    other_id = (await http.post("/v1/jobs", json=SONG)).json()["id"]
    slot.claim(job_id)
    slot.succeed(job_id, [b"song"])
    slot.shrink(job_id)
    other, job = (await http.get("/v1/jobs")).json()["jobs"]
    whole = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert job["spec"] == {"prompt": song["prompt"][:60]}
    assert {name for name in job if job[name] != whole[name]} <= {"spec", "created_at", "ended_at"}, "times in ms"
    assert not {"attempts", "timeout_s", "usage", "cancel_requested"} & set(job)
    assert (whole["spec"]["duration_s"], whole["timeout_s"], len(whole["attempts"])) == (240, 99, 1)
    assert other == {**(await http.get(f"/v1/jobs/{other_id}")).json(), "eta_s": other["eta_s"]}, "whole as ever"


async def test_queue_and_models(http: httpx.AsyncClient, redis: Redis) -> None:
    assert (await http.get("/v1/models")).json()["models"] == []
    for name in ("a", "b"):
        worker = Presence(
            name=name, pool="default", stage=WorkerStage.READY, slots=2, model=model("tiny"), started_at=now()
        )
        announce(redis, Keys(), worker)
    record_pace(redis, Keys(), "default", 8)
    await http.post("/v1/jobs", json={**SONG, "model": "tiny"})
    (pool,) = (await http.get("/v1/queue")).json()["pools"]
    assert [(lane["lane"], lane["waiting"], lane["eta_s"]) for lane in pool["lanes"]] == [
        ("high", 0, 8.0),
        ("normal", 1, 8.0),
        ("low", 0, 8.0),
    ]
    assert [worker["name"] for worker in pool["workers"]] == ["a", "b"]
    (tiny,) = (await http.get("/v1/models")).json()["models"]
    assert (tiny["name"], tiny["default"], tiny["workers"], tiny["defaults"]["steps"]) == ("tiny", True, 2, 8)
    unknown = problem(await http.post("/v1/jobs", json={**SONG, "model": "huge"}))
    assert (unknown["status"], unknown["field"]) == (422, "model")


async def test_health(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).status_code == 200
    assert (await http.get("/readyz")).json() == {"status": "ready"}
    for path in ("/healthz", "/readyz"):
        headed = await http.head(path)
        assert (headed.status_code, headed.content) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_path"),
        ("GET", "/v1", 404, "unknown_path"),
        ("PUT", "/v1/jobs", 405, "bad_request"),
        ("DELETE", "/v1/queue", 405, "bad_request"),
        ("GET", f"/v1/jobs/{NO_JOB}", 404, "not_found"),
        ("POST", f"/v1/jobs/{NO_JOB}/cancel", 404, "not_found"),
        ("DELETE", f"/v1/jobs/{NO_JOB}", 404, "not_found"),
        ("GET", f"/v1/jobs/{NO_JOB}/audio", 404, "not_found"),
        ("GET", f"/v1/jobs/{NO_JOB}/events", 404, "not_found"),
        ("GET", "/v1/jobs/%2e%2e%2fsecret", 404, "unknown_path"),
        ("GET", "/v1/jobs/" + "a" * 3000, 404, "not_found"),
        ("GET", "/v1/jobs/rq%3Ajob%3Ax", 404, "not_found"),
        ("GET", f"/v1/jobs/{NO_JOB.upper()}", 404, "not_found"),
        ("GET", f"/v1/jobs/{NO_JOB}%0a", 404, "not_found"),
        ("GET", f"/v1/jobs/{NO_JOB}/audio?index=8", 422, "invalid_spec"),
        ("GET", f"/v1/jobs/{NO_JOB}/audio?index=x", 422, "invalid_spec"),
        ("GET", f"/v1/jobs/{NO_JOB}/events?last_event_id=x", 404, "not_found"),
        ("GET", "/v1/jobs?limit=0", 422, "invalid_spec"),
        ("GET", "/v1/jobs?limit=1e9", 422, "invalid_spec"),
        ("GET", "/v1/jobs?status=pending", 422, "invalid_spec"),
        ("GET", "/v1/jobs?cursor=x", 422, "invalid_spec"),
        ("GET", "/v1/jobs?created_after=5", 422, "invalid_spec"),
        ("GET", "/v1/jobs?created_after=2026-01-31", 422, "invalid_spec"),
        ("GET", "/v1/jobs?created_before=2026-01-31T12:00:00", 422, "invalid_spec"),
        ("GET", "/v1/jobs?label=novalue", 422, "invalid_spec"),
        ("GET", "/v1/jobs?label==x", 422, "invalid_spec"),
        ("GET", "/v1/uploads/nothing", 404, "not_found"),
        ("GET", f"/v1/uploads/upload-{'0' * 32}", 404, "not_found"),
        ("DELETE", f"/v1/uploads/upload-{'0' * 32}", 404, "not_found"),
        ("POST", f"/v1/uploads/upload-{'0' * 32}/complete", 404, "not_found"),
        ("POST", "/v1/uploads?presign=true", 501, "unsupported"),
        ("POST", "/v1/uploads", 422, "invalid_spec"),
    ],
)
async def test_problems(http: httpx.AsyncClient, method: str, path: str, status: int, code: str) -> None:
    answer = await http.request(method, path)
    answered = problem(answer)
    assert (answered["status"], answered["code"], answered["type"]) == (status, code, f"urn:serinette:problem:{code}")
    assert answered["retryable"] is False


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("PUT", f"/v1/jobs/{NO_JOB}", "DELETE, GET, HEAD"),
        ("POST", f"/v1/jobs/{NO_JOB}/audio", "GET, HEAD"),
        ("DELETE", "/v1/queue", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_learns_all_right_ones(
    http: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await http.request(method, path)
    assert answer.headers["allow"] == allowed
    assert problem(answer)["title"] == "Method Not Allowed"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_songs_come_as_json(http: httpx.AsyncClient, redis: Redis, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answered = problem(await http.post("/v1/jobs", content=json.dumps(SONG), headers=headers))
    assert (answered["status"], answered["code"]) == (415, "unsupported_media_type")
    assert "send Content-Type: application/json" in answered["detail"]
    assert redis.dbsize() == 0
    more = {"Content-Type": "application/json; charset=utf-8"}
    assert (await http.post("/v1/jobs", content=json.dumps(SONG), headers=more)).status_code == 202


async def test_a_song_that_a_job_has_not(http: httpx.AsyncClient, slot: HandSlot) -> None:
    job_id = (await http.post("/v1/jobs", json=SONG)).json()["id"]
    slot.claim(job_id)
    slot.succeed(job_id, [b"song"])
    assert "has 1 song," in problem(await http.get(f"/v1/jobs/{job_id}/audio?index=1"))["detail"]


async def test_an_upload_that_was_never_put_leaks_no_key(http: httpx.AsyncClient) -> None:
    answered = problem(await http.post(f"/v1/uploads/upload-{'0' * 32}/complete"))
    assert answered["detail"].endswith("nothing was PUT to its put_url yet")


async def test_a_store_that_hangs_holds_up_its_own_callers_alone(
    http: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hang(*_: object) -> bytes:
        assert answers.wait(120)
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(Store, "get", hang)
    url = f"/v1/uploads/upload-{'0' * 32}"
    hanging = [asyncio.create_task(http.get(url, timeout=120)) for _ in range(100)]
    hanging.append(asyncio.create_task(http.post("/v1/jobs", json={"reference_audio": "upload-1"}, timeout=120)))
    async with asyncio.timeout(60):
        while app.state.parts.queue.store_threads.waiting < 90:  # noqa: ASYNC110  # no event says so
            await asyncio.sleep(0.01)
    try:
        assert (await http.get("/v1/queue")).status_code == 200
        assert (await http.post("/v1/jobs", json=SONG)).status_code == 202
        assert not any(request.done() for request in hanging)
    finally:
        answers.set()
    assert {answer.status_code for answer in await asyncio.gather(*hanging)} == {503}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"duration_s": 0}, "duration_s"),
        ({"duration_s": "long"}, "duration_s"),
        ({"duration_s": 601}, "duration_s"),
        ({"duration": 10}, "duration"),
        ({"bpm": 5}, "bpm"),
        ({"format": "exe"}, "format"),
        ({"task": "repaint"}, "source_audio"),
        ({"task": "extract", "source_audio": "upload-1"}, "track"),
        ({"source_audio": "/etc/passwd", "task": "cover"}, "source_audio"),
        ({"source_audio": "http://169.254.169.254/", "task": "cover"}, "source_audio"),
        ({"source_audio": "../x/0", "task": "cover"}, "source_audio"),
        ({"source_audio": "upload-1", "task": "cover"}, "source_audio"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63 - 2, "variations": 3}, "seed"),
        ({"lora": "choir"}, "lora"),
        ({"audio_codes": "<|audio_code_x|>"}, "audio_codes"),
        ({"timesteps": [0.1, 0.9]}, "timesteps"),
        ({"labels": {"a\n": "b"}}, "labels"),
        ({"labels": {f"l{n}": "x" for n in range(17)}}, "labels"),
        ({"lane": "express"}, "lane"),
        ({"timeout_s": 1}, "timeout_s"),
        ({"webhook": "gopher://example.com"}, "webhook"),
        ({"prompt": "a\u0000b"}, "prompt"),
        ({"prompt": "x" * 9000}, "prompt"),
        ({"lora": "../../x"}, "lora"),
    ],
)
async def test_bad_songs_name_the_field(
    http: httpx.AsyncClient, redis: Redis, body: dict[str, Any], field: str
) -> None:
    answered = problem(await http.post("/v1/jobs", json=body))
    assert (answered["status"], answered["code"]) == (422, "invalid_spec")
    assert answered["field"].partition(".")[0] == field
    assert redis.dbsize() == 0  # nothing was stored


HOSTILE_BODIES = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b"\xff\xfe",
    b"\x00" * 100,
    b"NaN",
    b'{"duration_s": NaN}',
    b'{"duration_s": Infinity}',
    b'{"duration_s": 1e999}',
    b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"prompt": "\\ud800"}',
    b'{"prompt": {"a": 1}}',
    b'{"a":' * 50_000,
    b"[" * 100_000,
    b'{"labels": {"a": {"b": {}}}}',
    b'{"__proto__": {}}',
    b'{"tracks": "' + b"x" * 1000 + b'"}',
    json.dumps({"tracks": ["vocals"] * 5000}).encode(),
]


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x", ""])
async def test_hostile_bodies_are_the_clients_fault(http: httpx.AsyncClient, kind: str) -> None:
    for body in HOSTILE_BODIES:
        answered = problem(await http.post("/v1/jobs", content=body, headers={"Content-Type": kind}))
        assert answered["status"] in ({400, 413, 422} if kind == "application/json" else {415}), body[:40]
        assert answered["code"] in {"bad_request", "invalid_spec", "too_large", "unsupported_media_type"}, body[:40]
        assert "error parsing" not in answered["detail"], body[:40]  # says neither what was wrong nor what to do


async def test_a_redirect_of_the_router_names_no_host(http: httpx.AsyncClient) -> None:
    """Behind a proxy that ends TLS it would lead from https to http."""
    answer = await http.post("/v1/jobs/", json={"prompt": "x"}, headers={"Host": "elsewhere.example"})
    assert (answer.status_code, answer.headers["Location"]) == (307, "/v1/jobs")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Idempotency-Key", "x" * 256),
        ("Idempotency-Key", ""),
        ("Idempotency-Key", "caf\xe9"),
        ("Idempotency-Key", "a\tb"),
    ],
)
async def test_hostile_keys(http: httpx.AsyncClient, name: str, value: str) -> None:
    answered = problem(await http.post("/v1/jobs", json=SONG, headers=[(name.encode(), value.encode("latin-1"))]))
    assert (answered["status"], answered["field"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize(
    "headers",
    [
        {"Prefer": "wait=" + "9" * 4000},
        {"Prefer": "\x7f\xff"},
        {"Host": "evil.example"},
        {"X-Forwarded-For": "1.2.3.4" * 100},
        {"Accept": "application/xml"},
        {"Range": "bytes=0-" * 200},
        {"Content-Length": "3"},
    ],
)
async def test_hostile_headers_never_break_it(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert (await http.post("/v1/jobs", json=SONG, headers=raw)).status_code < 500
    assert (await http.get("/v1/jobs", headers=raw)).status_code < 500


async def test_bodies_are_bounded(http: httpx.AsyncClient) -> None:
    declared = problem(await http.post("/v1/jobs", content=b"x" * 1_100_000))
    assert (declared["status"], declared["code"]) == (413, "too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(2000):
            yield b"x" * 1000

    counted = await http.post("/v1/jobs", content=chunks(), headers={"Content-Type": "application/json"})
    assert problem(counted)["code"] == "too_large"
    assert counted.headers["connection"] == "close"
    mad = await http.post("/v1/jobs", content=b"{}", headers={"Content-Length": "-1"})
    assert problem(mad)["status"] == 400


async def test_an_unforeseen_error_leaks_nothing(
    http: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def burst(*_: object, **__: object) -> None:
        raise RuntimeError("an internal secret")

    monkeypatch.setattr(type(app.state.parts.queue), "pools", burst)
    answer = await http.get("/v1/queue")
    answered = problem(answer)
    assert (answered["status"], answered["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


async def test_other_dialects_keep_their_shape(http: httpx.AsyncClient) -> None:
    answer = await http.get("/nothing/here")
    assert (answer.status_code, set(answer.json())) == (404, {"detail"})
    assert answer.json()["detail"].startswith("there is nothing at /nothing/here")


async def test_cors_is_an_allow_list(http: httpx.AsyncClient) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "idempotency-key,content-type"}
    allowed = await http.options("/v1/jobs", headers={"Origin": "https://studio.example", **asked})
    assert allowed.headers["access-control-allow-origin"] == "https://studio.example"
    refused = await http.options("/v1/jobs", headers={"Origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in refused.headers
    read = await http.get(f"/v1/jobs/{NO_JOB}", headers={"Origin": "https://studio.example"})
    assert read.headers["access-control-allow-origin"] == "https://studio.example"
    exposed = read.headers["access-control-expose-headers"]
    for name in ("Location", "ETag", "Retry-After", "Idempotency-Replayed", "Content-Range", "Content-Disposition"):
        assert name in exposed


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1", "http://localhost:5173", True),
        ("127.0.0.1", "http://127.0.0.1:8080", True),
        ("localhost", "http://localhost", True),
        ("127.0.0.1", "https://studio.example", False),
        ("127.0.0.1", "http://localhost.evil.example", False),
        ("127.0.0.1", "http://localhost:80@evil.example", False),
        ("127.0.0.1", "http://127x0.0.1:8080", False),
        ("127.0.0.1", "null", False),
        ("0.0.0.0", "http://localhost:5173", False),
    ],
)
async def test_on_loopback_pages_of_this_machine_may_call_and_no_others(
    settings: GatewaySettings, host: str, origin: str, allowed: bool
) -> None:
    app = create_app(settings.model_copy(update={"cors_origins": (), "host": host}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        answer = await http.get("/healthz", headers={"Origin": origin})
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        before = await http.options("/release_task", headers=asked)
    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert before.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert "access-control-allow-credentials" not in answer.headers
