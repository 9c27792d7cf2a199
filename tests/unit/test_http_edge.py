"""What holds of every path: who a gateway without keys answers to, prefixes of proxies, HEAD, compression, request ids,
and policies for pages and files.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from redis import Redis

from api.app import create_app
from api.response_headers import LEAST_BYTES
from api.settings import GatewaySettings
from serinette import logs
from serinette.store import Store
from tests.gateways import HandSlot, problem
from tests.unit.tenants import SONG, settings_of

pytestmark = pytest.mark.shared_valkey
NO_JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
EVIL = "http://evil.example"


@pytest.fixture
def settings(redis_url: str, file_store_url: str) -> GatewaySettings:
    return settings_of(redis_url, file_store_url, auth=False, cors_origins="https://Studio.example/, https://b.example")


def client(app: FastAPI, peer: str = "127.0.0.1", base: str = "http://localhost:8019") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(peer, 1))
    return httpx.AsyncClient(transport=transport, base_url=base)


@pytest.fixture
def app(settings: GatewaySettings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app), client(app) as opened:
        yield opened


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8019", 200),
        ("LOCALHOST", 200),
        ("studio.localhost:9", 200),
        ("127.0.0.1:1", 200),
        ("127.9.9.9", 200),
        ("[::1]:8019", 200),
        ("[::1]", 200),
        ("localhost.", 200),
        ("evil.example", 403),
        ("evil.example:8019", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("192.168.1.7:8019", 403),
        ("[fe80::1]", 403),
        ("localhost@evil.example", 400),
        ("[", 400),
        ("[::1", 400),
        ("[localhost]", 400),
        ("localhost:99999", 400),
        ("localhost:x", 400),
        ("localhost/x", 400),
        ("l\xf6calhost", 400),
        ("", 400),
    ],
)
async def test_without_keys_only_names_of_this_machine_are_answered_to(
    http: httpx.AsyncClient, host: str, status: int
) -> None:
    answer = await http.get("/v1/queue", headers=[(b"Host", host.encode("latin-1"))])
    assert answer.status_code == status, answer.text
    if host and status == 403:
        assert (problem(answer)["code"], problem(answer)["field"]) == ("forbidden", "Host")
        for probe in ("/healthz", "/readyz"):
            assert (await http.get(probe, headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["[", "[::1", "a@b", "a/b", "a:b"])
async def test_a_host_that_is_none_is_refused_with_keys_too(redis_url: str, file_store_url: str, host: str) -> None:
    async with client(create_app(settings_of(redis_url, file_store_url))) as http:
        for path in ("/v1/queue", "/v1/jobs/", "/docs"):
            assert (await http.get(path, headers={"Host": host})).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": "http://localhost:8019"}, 202),
        ({"Origin": "https://studio.example"}, 202),
        ({"Origin": "https://B.example"}, 202),
        ({"Origin": EVIL}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 202),
        ({"Origin": "https://other.example", "Sec-Fetch-Site": "same-origin"}, 202),
        ({"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "//localhost:8019"}, 403),
        ({"Origin": "https://music.example", "X-Forwarded-Host": "music.example"}, 202),
    ],
)
async def test_without_keys_foreign_pages_are_refused(
    http: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    answer = await http.post("/v1/jobs", json=SONG, headers=headers)
    assert answer.status_code == status, answer.text
    plain = {"Content-Type": "text/plain", **headers}
    simple = await http.post("/release_task", content=b'{"prompt": "x"}', headers=plain)
    assert (simple.status_code == 403) == (status == 403), "what a page sends without a preflight"


async def test_a_forwarded_host_is_believed_of_proxies_alone(app: FastAPI) -> None:
    async with client(app, peer="10.0.0.9") as http:
        headers = {"Origin": EVIL, "X-Forwarded-Host": "evil.example"}
        assert (await http.post("/v1/jobs", json=SONG, headers=headers)).status_code == 403


async def test_a_websocket_of_a_foreign_page_or_name_is_refused(app: FastAPI) -> None:
    async def opened(**headers: str) -> list[Any]:
        sent: list[Any] = []
        scope = {
            "type": "websocket",
            "path": f"/v1/jobs/{NO_JOB}/events",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "query_string": b"",
            "subprotocols": [],
            "client": ("127.0.0.1", 1),
            "extensions": {"websocket.http.response": {}},
        }

        async def receive() -> dict[str, str]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent

    for headers in ({"host": "localhost", "origin": EVIL}, {"host": "evil.example"}):
        assert (await opened(**headers))[0]["status"] == 403
    assert (await opened(host="[::1]:8019", origin="http://[::1]:8019"))[0]["status"] == 404, (
        "it came as far as the job"
    )


async def test_with_keys_or_on_purpose_any_name_and_page_may_ask(redis_url: str, file_store_url: str) -> None:
    foreign = {"Host": "music.example", "Origin": EVIL}
    async with client(create_app(settings_of(redis_url, file_store_url))) as http:
        assert (await http.get("/v1/queue", headers=foreign)).status_code == 401
    open_to_all = settings_of(redis_url, file_store_url, auth=False, allow_anyone=True, host="0.0.0.0")
    async with client(create_app(open_to_all)) as http:
        assert (await http.get("/v1/queue", headers={"Host": "music.example"})).status_code == 200
        assert (await http.get("/v1/queue", headers=foreign)).status_code == 403, (
            "a page elsewhere still is not a client"
        )
    named = settings_of(redis_url, file_store_url, auth=False, hosts="Music.example, other.example")
    async with client(create_app(named)) as http:
        assert (await http.get("/v1/queue", headers={"Host": "music.example:80"})).status_code == 200


@pytest.mark.parametrize("name", ["Authorization", "Host", "Content-Type", "Idempotency-Key", "Range", "Origin"])
async def test_a_header_that_says_one_thing_is_sent_once(http: httpx.AsyncClient, name: str) -> None:
    answer = await http.get("/v1/queue", headers=[(name, "localhost"), (name, "localhost")])
    assert (answer.status_code, problem(answer)["code"]) == (400, "bad_request")
    assert problem(answer)["detail"].startswith(f"{name}: ")


@pytest.fixture
def slot(redis: Redis, settings: GatewaySettings) -> HandSlot:
    return HandSlot(redis, Store.open(settings))


@pytest.mark.parametrize(
    ("sent", "peer", "prefix"),
    [
        ("/music", "127.0.0.1", "/music"),
        ("/a/b~c.d_e-f/", "127.0.0.1", "/a/b~c.d_e-f"),
        ("/v1", "127.0.0.1", "/v1"),
        ("/music", "10.1.2.3", ""),
        ("//evil.example", "127.0.0.1", ""),
        ("/a//b", "127.0.0.1", ""),
        ("https://evil.example", "127.0.0.1", ""),
        ("/a/../b", "127.0.0.1", ""),
        ('/"><script>', "127.0.0.1", ""),
        ("/", "127.0.0.1", ""),
    ],
)
async def test_a_forwarded_prefix_counts_if_it_is_a_plain_path_of_a_trusted_proxy(
    app: FastAPI, sent: str, peer: str, prefix: str
) -> None:
    async with client(app, peer) as http:
        answer = await http.post("/v1/jobs", json=SONG, headers={"X-Forwarded-Prefix": sent})
    assert answer.headers["Location"] == f"{prefix}/v1/jobs/{answer.json()['id']}"


async def test_head_is_wherever_get_is(http: httpx.AsyncClient, app: FastAPI, slot: HandSlot) -> None:
    job_id = (await http.post("/v1/jobs", json=SONG)).json()["id"]
    slot.claim(job_id)
    slot.succeed(job_id, [b"a song" * 100])
    values = {"job_id": job_id, "request_id": job_id, "name": "app.js", "upload_id": "upload-1", "batch_id": "batch-1"}
    paths = {route.path for route in app.routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())}
    for path in sorted(paths | {"/docs", "/openapi.json"}):
        url = path.replace(":path", "").format_map(values)
        got, headed = await http.get(url), await http.head(url)
        assert headed.status_code == (200 if url.endswith("/audio") and got.status_code == 307 else got.status_code), (
            url
        )
        for name in ("content-type", "content-length", "etag"):
            assert headed.headers.get(name) == got.headers.get(name), (url, name)


async def test_long_json_is_compressed_for_those_that_take_it_and_nothing_else_is(
    http: httpx.AsyncClient, slot: HandSlot
) -> None:
    job_ids = [(await http.post("/v1/jobs", json=SONG)).json()["id"] for _ in range(12)]
    slot.claim(job_ids[0])
    slot.succeed(job_ids[0], [b"a song" * 10_000])
    packed = await http.get("/v1/jobs")
    assert (packed.headers["content-encoding"], "Accept-Encoding" in packed.headers["vary"]) == ("gzip", True)
    plain = await http.get("/v1/jobs", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert "Accept-Encoding" in plain.headers["vary"], "a cache must not give the one for the other"
    for path in ("/v1/jobs", "/", "/studio/app.js"):
        refused = await http.get(path, headers={"Accept-Encoding": "br, gzip;q=0, *;q=0.5"})
        assert "content-encoding" not in refused.headers, path
        taken = await http.get(path, headers={"Accept-Encoding": "gzip;q=0.5"})
        assert taken.headers["content-encoding"] == "gzip", path
    assert len(plain.content) > LEAST_BYTES > int(packed.headers["content-length"])
    assert [job["id"] for job in packed.json()["jobs"]] == [job["id"] for job in plain.json()["jobs"]]
    for path in (f"/v1/jobs/{job_ids[1]}", f"/v1/jobs/{job_ids[0]}/audio", "/healthz"):
        assert "content-encoding" not in (await http.get(path)).headers, path


async def test_every_answer_and_its_log_lines_have_a_request_id(
    http: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = []

    async def fail(*_: object) -> None:
        logged.append(dict(logs._about.get()))
        raise ZeroDivisionError

    answers = [await http.get(path) for path in ("/v1/queue", "/nothing", f"/v1/jobs/{NO_JOB}", "/", "/docs")]
    answers.append(await http.get("/v1/queue", headers={"Host": "evil.example"}))
    monkeypatch.setattr(app.state.parts.queue, "pools", fail)
    answers.append(await http.get("/v1/queue"))
    assert answers[-1].status_code == 500
    assert answers[-1].headers["X-Request-Id"] in problem(answers[-1])["detail"]
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert [each["request"] for each in logged] == ids[-1:]
    own = await http.post("/v1/jobs", json=SONG, headers={"X-Request-Id": "trace-1.a"})
    assert own.headers["X-Request-Id"] == "trace-1.a"
    sent = await http.get("/healthz", headers={"X-Request-Id": "a b\x7f" + "x" * 100})
    assert re.fullmatch("[0-9a-f]{16}", sent.headers["X-Request-Id"])


async def test_pages_run_their_own_scripts_alone_and_files_run_nothing(http: httpx.AsyncClient, slot: HandSlot) -> None:
    docs = await http.get("/docs")
    policy = docs.headers["Content-Security-Policy"]
    (script,) = re.findall("<script>(.*?)</script>", docs.text, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src 'self' 'sha256" in policy
    for path in re.findall('(?:src|href)="([^"]+)"', docs.text):
        assert (await http.get(f"/{path}")).status_code == 200, path
    job_id = (await http.post("/v1/jobs", json=SONG)).json()["id"]
    slot.claim(job_id)
    slot.succeed(job_id, [b"song"])
    song = await http.get(f"/v1/jobs/{job_id}/audio")
    assert song.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert song.headers["Content-Disposition"].startswith("inline")
    for answer in (docs, song, await http.get("/"), await http.get("/v1/queue"), await http.get("/nothing")):
        assert answer.headers.get_list("X-Content-Type-Options") == ["nosniff"]


async def test_a_preflight_may_name_any_header(http: httpx.AsyncClient) -> None:
    asked = {
        "Origin": "https://studio.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "cache-control, traceparent, x-anything",
    }
    answer = await http.options("/v1/jobs", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Headers"] == asked["Access-Control-Request-Headers"]
