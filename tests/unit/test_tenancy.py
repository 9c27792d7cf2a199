"""Keys: who gets in, who does not, and what of a key is seen anywhere."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import ValidationError
from redis import Redis
from starlette.routing import BaseRoute

from api.auth.keyring import Caller, DeclaredFile
from api.auth.links import Links, opened_by_link, token_of
from api.middleware import PUBLIC, relative_location
from api.settings import GatewaySettings
from serinette import credentials, logs
from serinette.credentials import Limits
from serinette.errors import ConfigurationError
from serinette.job import now
from serinette.names import Keys
from tests.gateways import problem
from tests.unit.tenants import SONG, bearing, credential_of, key_of, serving, settings_of

UNKNOWN_JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"


pytestmark = pytest.mark.shared_valkey


@pytest.fixture
def settings(redis_url: str, file_store_url: str) -> GatewaySettings:
    return settings_of(redis_url, file_store_url, key_in_path=True)


@pytest.fixture
async def served(settings: GatewaySettings) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    async with serving(settings) as both:
        yield both


@pytest.fixture
def http(served: tuple[FastAPI, httpx.AsyncClient]) -> httpx.AsyncClient:
    return served[1]


def routes_of(routes: list[BaseRoute]) -> list[tuple[str, str]]:
    found = [
        (method, re.sub(r"\{[^}]*\}", UNKNOWN_JOB, route.path))
        for route in routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods or ())
    ]
    for route in routes:  # of a newer FastAPI, which keeps included routers whole
        found += routes_of(getattr(getattr(route, "original_router", None), "routes", []))
    return found


async def test_every_route_but_the_public_ones_asks_for_a_key(served: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, http = served
    paths = app.openapi()["paths"]
    asked = [
        (method.upper(), re.sub(r"\{[^}]*\}", UNKNOWN_JOB, path))
        for path, methods in paths.items()
        for method in methods
    ]
    assert len(asked) > 20
    for method, path in [*asked, *routes_of(app.router.routes), ("GET", "/nothing/here")]:
        answer = await http.request(method, path)
        if path.startswith("/studio/"):  # files, the same for all: tests/unit/test_studio_files.py
            continue
        if path in PUBLIC:
            assert answer.status_code in {200, 307, 503}, path
            continue
        assert answer.status_code == 401, (method, path, answer.text)
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="serinette"'


async def test_a_refusal_is_reported_in_the_shape_of_each_dialect(http: httpx.AsyncClient) -> None:
    ours = await http.get("/v1/jobs")
    assert problem(ours)["code"] == "unauthorized"
    assert not problem(ours)["retryable"]
    seeds = await http.get("/status/x")
    assert list(seeds.json()) == ["detail"]


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer srn_000000000000_" + "a" * 43,
        "Basic c3JuOng=",
        "Bearer srn_",
        "Bearer \xff\xfe",
        "bearer nonsense with spaces",
        "Bearer " + "x" * 20_000,
    ],
)
async def test_what_is_no_key_does_not_open(http: httpx.AsyncClient, header: str) -> None:
    answer = await http.get("/v1/jobs", headers={b"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401
    assert "Retry-After" not in answer.headers


async def test_a_key_opens_until_it_is_revoked(http: httpx.AsyncClient, redis: Redis) -> None:
    key = key_of(redis, "acme")
    assert (await http.get("/v1/jobs", headers=bearing(key))).status_code == 200
    assert (await http.get("/v1/jobs", headers={"Authorization": f"bearer {key}"})).status_code == 200
    other_secret = key[:-1] + ("a" if key[-1] != "a" else "b")
    refused = await http.get("/v1/jobs", headers=bearing(other_secret))
    assert refused.headers["WWW-Authenticate"] == 'Bearer realm="serinette", error="invalid_token"'
    credentials.revoke(redis, Keys(), credential_of(key, redis).id)
    assert (await http.get("/v1/jobs", headers=bearing(key))).status_code == 401


async def test_an_expired_key_does_not_open(http: httpx.AsyncClient, redis: Redis) -> None:
    key = key_of(redis, "acme", expires_at=now() - timedelta(seconds=1))
    assert (await http.get("/v1/jobs", headers=bearing(key))).status_code == 401


BATCH_CALLS = [
    *(f"GET /v1/batches/{{}}{file}" for file in ("", "/lines", "/output.jsonl", "/errors.jsonl", "/songs.zip")),
    *(f"POST /v1/batches/{{}}/{act}" for act in ("pause", "resume", "cancel", "retry")),
    "DELETE /v1/batches/{}",
]


async def test_anothers_batch_is_as_one_that_never_was(http: httpx.AsyncClient, redis: Redis) -> None:
    mine, theirs = bearing(key_of(redis, "mine")), bearing(key_of(redis, "theirs"))
    keyed = {"Idempotency-Key": "album"}
    made = [(await http.post("/v1/batches", json={"specs": [SONG]}, headers=mine | keyed)).json() for _ in range(2)]
    assert made[0]["id"] == made[1]["id"]
    batch_id, never = made[0]["id"], f"batch-{'0' * 32}"
    for call in BATCH_CALLS:
        method, path = call.split()
        seen = await http.request(method, path.format(batch_id), headers=theirs)
        nothing = await http.request(method, path.format(never), headers=theirs)
        assert seen.status_code == nothing.status_code == 404, call
        assert seen.text.replace(batch_id, never) == nothing.text, call
        assert "theirs" not in seen.text, call
    assert (await http.get("/v1/batches", headers=theirs)).json() == {"batches": []}
    other = (await http.post("/v1/batches", json={"specs": [SONG]}, headers=theirs | keyed)).json()
    assert other["id"] != batch_id
    assert (await http.get(f"/v1/batches/{batch_id}", headers=mine)).json()["status"] == "in_progress"


def test_at_rest_lies_a_digest(redis: Redis) -> None:
    key = key_of(redis, "acme")
    raw: dict[Any, Any] = redis.hgetall(Keys().credentials)
    at_rest = b" ".join(raw.values()).decode()
    assert key not in at_rest
    assert key.split("_", 2)[2] not in at_rest
    assert credential_of(key, redis).sha256 == credentials.digest_of(key)
    assert len({credentials.new_key("acme")[0] for _ in range(50)}) == 50


async def test_a_declared_file_opens_and_is_read_again(redis_url: str, file_store_url: str, tmp_path: Path) -> None:
    old, kept_old = credentials.new_key("acme")
    new, kept_new = credentials.new_key("acme")
    path = tmp_path / "keys.json"

    def declare(*kept: credentials.Credential) -> None:
        text = {"tenants": {"acme": {"lanes": ["low"]}}, "keys": [each.model_dump(mode="json") for each in kept]}
        (tmp_path / "next.json").write_text(json.dumps(text))
        (tmp_path / "next.json").replace(path)  # as Kubernetes changes a mounted Secret

    declare(kept_old)
    async with serving(settings_of(redis_url, file_store_url, keys_file=path)) as (_, http):
        assert (await http.get("/v1/usage", headers=bearing(old))).json()["limits"]["lanes"] == ["low"]
        assert (await http.get("/v1/jobs", headers=bearing(new))).status_code == 401
        declare(kept_old, kept_new)
        assert (await http.get("/v1/jobs", headers=bearing(old))).status_code == 200  # both, while clients change over
        assert (await http.get("/v1/jobs", headers=bearing(new))).status_code == 200
        declare(kept_new)
        assert (await http.get("/v1/jobs", headers=bearing(old))).status_code == 401
        path.write_text("{")
        assert (await http.get("/v1/jobs", headers=bearing(new))).status_code == 200


def test_a_wrong_declaration_is_named_without_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        DeclaredFile(path, 1)
    path.write_text(json.dumps({"keys": [{"id": "0" * 12, "tenant": "acme", "sha256": "srn_a_plain_key"}]}))
    with pytest.raises(ConfigurationError) as refused:
        DeclaredFile(path, 1)
    assert "keys.0.sha256" in refused.value.message
    assert "srn_a_plain_key" not in refused.value.message


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gateway.example"])
def test_beyond_loopback_keys_are_asked_for(host: str) -> None:
    with pytest.raises(ValidationError, match="SERINETTE_AUTH"):
        GatewaySettings(host=host)
    assert GatewaySettings(host=host, auth=True).auth
    assert not GatewaySettings(host=host, allow_anyone=True).auth


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_on_loopback_they_are_not(host: str) -> None:
    assert not GatewaySettings(host=host).auth


# -- the key in the path


async def test_a_key_in_the_path_opens_and_is_seen_nowhere(
    http: httpx.AsyncClient, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = key_of(redis, "acme")
    base = f"/k/{key}"
    submitted = await http.post(f"{base}/v1/jobs", json=SONG)
    assert submitted.status_code == 202
    location = submitted.headers["Location"]
    assert key not in location
    assert (await http.get(str(submitted.url.join(location)))).json()["id"] == submitted.json()["id"]
    asynchronous = await http.post(f"{base}/generate_music_async", json={"prompt": "jazz"})
    assert (await http.get(f"{base}/status/{asynchronous.json()['request_id']}")).json()["status"] == "pending"
    answers = [submitted, asynchronous, await http.get(f"{base}/v1/nothing"), await http.get(f"{base}/nothing/")]
    for answer in answers:
        assert key not in answer.text
        assert key not in str(answer.headers)
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not [line for line in ours if key in line or key.split("_", 2)[2] in line]


async def test_a_redirect_leads_back_under_the_clients_own_base(http: httpx.AsyncClient, redis: Redis) -> None:
    base = f"/k/{key_of(redis, 'acme')}"
    seen = await http.post(f"{base}/generate_music", json={"prompt": "jazz"})  # waits for 5 s, then redirects
    assert seen.status_code == 303
    follow = seen.url.join(seen.headers["Location"])
    assert follow.path.startswith(f"{base}/result/")
    assert base not in seen.headers["Location"]
    slash = await http.get(f"{base}/v1/queue/")
    assert slash.is_redirect
    assert slash.url.join(slash.headers["Location"]).path == f"{base}/v1/queue"


@pytest.mark.parametrize(
    ("location", "path", "expected"),
    [
        ("/result/1?wait=5", "/generate_music", "./result/1?wait=5"),
        ("/result/1?wait=5", "/result/1", "./1?wait=5"),
        ("/v1/jobs/1", "/v1/jobs", "./jobs/1"),
        ("http://gateway/v1/queue", "/v1/queue/", "../queue"),
        ("/v1/a/", "/v1/a", "./a/"),
        ("https://store.example/songs/1?X-Amz=2", "/v1/jobs/1/audio", "https://store.example/songs/1?X-Amz=2"),
        ("//elsewhere/x", "/v1", "//elsewhere/x"),
        ("result/1", "/generate_music", "result/1"),
    ],
)
def test_relative_locations(location: str, path: str, expected: str) -> None:
    assert relative_location(location, path, "gateway") == expected


async def test_a_wrong_key_in_the_path_does_not_open(http: httpx.AsyncClient) -> None:
    key = "srn_000000000000_" + "a" * 43
    for path in (f"/k/{key}/v1/jobs", "/k/nonsense/v1/jobs", "/k/%2F/v1/jobs", "/k//v1/jobs", "/k/", f"/k/{key}"):
        answer = await http.get(path)
        assert answer.status_code in {401, 404}, path
        assert key not in answer.text


async def test_a_key_in_the_path_opens_only_where_the_operator_allows(redis_url: str, file_store_url: str) -> None:
    with Redis.from_url(redis_url) as redis:
        key = key_of(redis, "acme")
    async with serving(settings_of(redis_url, file_store_url)) as (_, http):
        answer = await http.get(f"/k/{key}/v1/jobs")
        assert answer.status_code == 404
        assert key not in answer.text


# -- links


async def test_a_link_opens_its_job_alone_for_a_while(http: httpx.AsyncClient, redis: Redis) -> None:
    key = key_of(redis, "acme")
    mine, other = [(await http.post("/v1/jobs", json=SONG, headers=bearing(key))).json()["id"] for _ in range(2)]
    links = (await http.post(f"/v1/jobs/{mine}/links", headers=bearing(key))).json()
    assert (await http.get(links["audio"])).status_code == 409  # open, and not generated yet
    await http.post(f"/v1/jobs/{mine}/cancel", headers=bearing(key))
    assert "event: canceled" in (await http.get(links["events"])).text
    assert key not in json.dumps(links)
    token = links["audio"].partition("token=")[2]
    for method, path in [
        ("GET", f"/v1/jobs/{other}/audio?token={token}"),
        ("GET", f"/v1/jobs/{mine}?token={token}"),
        ("GET", f"/v1/jobs?token={token}"),
        ("POST", f"/v1/jobs/{mine}/cancel?token={token}"),
        ("DELETE", f"/v1/jobs/{mine}?token={token}"),
        ("POST", f"/v1/jobs/{mine}/links?token={token}"),
        ("GET", f"/v1/jobs/{mine}/audio?token={token[:-1]}"),
        ("GET", f"/v1/jobs/{mine}/audio?token="),
        ("GET", f"/v1/jobs/{mine}/audio?token=%00%ff"),
    ]:
        assert (await http.request(method, path)).status_code == 401, path


async def test_a_link_ends_with_its_time_and_with_its_key(http: httpx.AsyncClient, redis: Redis) -> None:
    key = key_of(redis, "acme")
    job_id = (await http.post("/v1/jobs", json=SONG, headers=bearing(key))).json()["id"]
    link = (await http.post(f"/v1/jobs/{job_id}/links", headers=bearing(key))).json()["audio"]
    path, _, token = link.partition("?token=")
    secret = redis.get(Keys().link_secret)
    assert isinstance(secret, bytes)
    caller = Caller("acme", credential_of(key, redis).id, Limits())
    at_s = int(now().timestamp())
    assert (await http.get(f"{path}?token={token_of(secret, caller, job_id, at_s + 60)}")).status_code == 409
    assert (await http.get(f"{path}?token={token_of(secret, caller, job_id, at_s - 60)}")).status_code == 401
    stretched = token.replace(token.split(".")[1], str(at_s + 10**6))
    assert (await http.get(f"{path}?token={stretched}")).status_code == 401
    stranger = credential_of(key_of(redis, "evil"), redis).id
    assert (await http.get(f"{path}?token={stranger}.{token.partition('.')[2]}")).status_code == 401
    credentials.revoke(redis, Keys(), caller.key_id)
    assert (await http.get(link)).status_code == 401


async def test_gateways_share_one_secret(settings: GatewaySettings, redis: Redis) -> None:
    key = key_of(redis, "acme")
    async with serving(settings) as (_, one), serving(settings) as (_, two):
        job_id = (await one.post("/v1/jobs", json=SONG, headers=bearing(key))).json()["id"]
        link: Any = (await one.post(f"/v1/jobs/{job_id}/links", headers=bearing(key))).json()
        assert (await two.get(link["audio"])).status_code == 409


@pytest.mark.parametrize(
    ("method", "path", "opened"),
    [
        ("GET", f"/v1/jobs/{UNKNOWN_JOB}/audio", (UNKNOWN_JOB, "audio")),
        ("HEAD", f"/v1/jobs/{UNKNOWN_JOB}/audio", (UNKNOWN_JOB, "audio")),
        ("GET", f"/v1/jobs/{UNKNOWN_JOB}/events", (UNKNOWN_JOB, "events")),
        ("POST", f"/v1/jobs/{UNKNOWN_JOB}/audio", None),
        ("GET", f"/v1/jobs/{UNKNOWN_JOB}", None),
        ("GET", f"/v1/jobs/{UNKNOWN_JOB}/audio/", None),
        ("GET", "/v1/jobs", None),
    ],
)
def test_what_links_open(method: str, path: str, opened: tuple[str, str] | None) -> None:
    assert opened_by_link(method, path) == opened


async def test_a_share_opens_the_songs_alone_until_it_is_revoked(http: httpx.AsyncClient, redis: Redis) -> None:
    key, friend = key_of(redis, "acme"), key_of(redis, "acme")
    mine, other = [(await http.post("/v1/jobs", json=SONG, headers=bearing(key))).json()["id"] for _ in range(2)]
    path = f"/v1/jobs/{mine}/share"
    assert (await http.get(path, headers=bearing(key))).status_code == 404
    shared = (await http.post(path, headers=bearing(key))).json()
    left_s = (datetime.fromisoformat(shared["expires_at"]) - now()).total_seconds()
    assert 86_000 < left_s <= 86_400
    ttl: Any = redis.ttl(Keys().share(mine))
    assert 86_000 < ttl <= 86_400
    assert (await http.post(path, headers=bearing(friend))).json() == shared, "one link, whichever key asks"
    assert (await http.get(path, headers=bearing(friend))).json() == shared
    stranger = bearing(key_of(redis, "evil"))
    for method in ("GET", "POST", "DELETE"):
        assert (await http.request(method, path, headers=stranger)).status_code == 404

    assert (await http.get(shared["audio"])).status_code == 409  # open, and not generated yet
    token = shared["audio"].partition("token=")[2]
    for method, closed in [
        ("GET", f"/v1/jobs/{mine}/events?token={token}"),
        ("GET", f"/v1/jobs/{other}/audio?token={token}"),
        ("GET", f"{path}?token={token}"),
        ("DELETE", f"{path}?token={token}"),
        ("GET", f"/v1/jobs/{mine}/audio?token={token[:-1]}"),
    ]:
        assert (await http.request(method, closed)).status_code == 401, closed
    assert (await http.delete(path, headers=bearing(friend))).status_code == 204
    assert (await http.get(shared["audio"])).status_code == 401
    again = (await http.post(path, headers=bearing(key))).json()
    assert again["audio"] != shared["audio"]
    assert (await http.get(shared["audio"])).status_code == 401, "a revoked link stays closed"
    credentials.revoke(redis, Keys(), credential_of(key, redis).id)
    assert (await http.get(again["audio"])).status_code == 401
    assert (await http.get(path, headers=bearing(friend))).status_code == 404, "its key has ended"


async def test_two_shares_at_once_are_one_link(
    settings: GatewaySettings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, gone = key_of(redis, "acme"), key_of(redis, "acme")
    both, look = asyncio.Barrier(2), Links.shared

    async def look_together(links: Links, job_id: str) -> tuple[str, int] | None:
        found = await look(links, job_id)
        if found is None:
            await both.wait()
        return found

    async with serving(settings) as (_, one), serving(settings) as (_, two):
        job_id = (await one.post("/v1/jobs", json=SONG, headers=bearing(key))).json()["id"]
        path = f"/v1/jobs/{job_id}/share"
        (await one.post(path, headers=bearing(gone))).raise_for_status()
        credentials.revoke(redis, Keys(), credential_of(gone, redis).id)  # what it left is not there, yet in the way
        monkeypatch.setattr(Links, "shared", look_together)
        first, second = await asyncio.gather(*(http.post(path, headers=bearing(key)) for http in (one, two)))
        assert first.json() == second.json()
        assert (await two.get(first.json()["audio"])).status_code == 409


async def test_a_share_ends_with_its_job(http: httpx.AsyncClient, redis: Redis) -> None:
    headers = {**bearing(key_of(redis, "acme")), "Idempotency-Key": "one"}
    job_id = (await http.post("/v1/jobs", json=SONG, headers=headers)).json()["id"]
    shared = (await http.post(f"/v1/jobs/{job_id}/share", headers=headers)).json()
    await http.post(f"/v1/jobs/{job_id}/cancel", headers=headers)
    await http.delete(f"/v1/jobs/{job_id}", headers=headers)
    assert (await http.post("/v1/jobs", json=SONG, headers=headers)).json()["id"] == job_id
    assert (await http.get(shared["audio"])).status_code == 401, "another job of the same id"


async def test_without_keys_nothing_is_shared(settings: GatewaySettings) -> None:
    async with serving(settings.model_copy(update={"auth": False})) as (_, http):
        job_id = (await http.post("/v1/jobs", json=SONG)).json()["id"]
        for method in ("GET", "POST"):
            refused = await http.request(method, f"/v1/jobs/{job_id}/share")
            assert (refused.status_code, refused.json()["code"]) == (501, "unsupported")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"GET /k/srn_0123456789ab_{'s' * 43}/v1/jobs", "GET /k/srn_0123456789ab_***/v1/jobs"),
        (f"< authorization: Bearer srn_0123456789ab_{'s' * 43}", "< authorization: Bearer srn_0123456789ab_***"),
        (
            "GET /v1/jobs/x/audio?index=1&token=ab.12.mac&b=2 HTTP/1.1",
            "GET /v1/jobs/x/audio?index=1&token=***&b=2 HTTP/1.1",
        ),
        ("nothing of the kind, 100 %", "nothing of the kind, 100 %"),
    ],
)
def test_logs_hold_no_keys(line: str, shown: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "%s", (line,), None)
    assert logs._with_context(record)
    assert record.getMessage() == shown
    broken = logging.LogRecord("x", logging.INFO, "x.py", 1, "%s %d", ("one",), None)
    assert logs._with_context(broken)
