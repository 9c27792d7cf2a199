"""The gateway below a path prefix: an Ingress passes it on, or a proxy strips it and says so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from api.app import create_app
from api.dialects.chat import answers as chat
from api.settings import GatewaySettings
from serinette.errors import ConfigurationError
from serinette.settings import SharedSettings, read
from serinette.store import Store
from tests.gateways import HandSlot

CHECKS = Path(__file__).parents[2] / "charts" / "serinette" / "templates" / "checks.yaml"
JOB = {"prompt": "jazz"}
STRIPPED = {"X-Forwarded-Prefix": "/music"}


@pytest.fixture(scope="module")
def client(valkey_url: str, store_url: str) -> Iterator[TestClient]:
    settings = GatewaySettings(redis_url=valkey_url, store_url=store_url, root_path="/music", max_wait_s=0.2)
    with TestClient(create_app(settings), "http://localhost", follow_redirects=False) as client:
        yield client


def test_the_chart_refuses_every_prefix_that_the_gateway_refuses(client: TestClient) -> None:
    """A gateway that does not start would be the first sign of it."""
    paths = [getattr(route, "path", "") for route in client.app.routes]  # type: ignore[attr-defined]
    ways = [path.strip("/").split("/") for path in paths]
    starts = {"/" + "/".join(way[:length]) for way in ways for length in range(1, len(way) + 1)}
    (listed,) = re.findall(r"\$taken := list (.*) -}}", CHECKS.read_text())
    taken = {start for start in starts if "{" not in start and start != "/" and not re.match(r"/(v1|k)(/|$)", start)}
    assert sorted(taken) == re.findall(r'"([^"]+)"', listed)


@pytest.mark.parametrize(
    ("before", "headers"),
    [("/music", {}), ("", STRIPPED), ("", {}), ("", {"X-Forwarded-Prefix": "/evil"})],
)
def test_every_address_that_is_answered_has_the_prefix_also_where_a_proxy_says_nothing(
    client: TestClient, before: str, headers: dict[str, str]
) -> None:
    prefix = "/music"
    made = client.post(f"{before}/v1/jobs", json=JOB, headers=headers)
    assert made.status_code in {200, 201, 202}, made.text
    assert made.headers["Location"] == f"{prefix}/v1/jobs/{made.json()['id']}"
    assert client.get(f"{before}/v1/jobs/{made.json()['id']}", headers=headers).json()["id"] == made.json()["id"]
    links = client.post(f"{before}/v1/jobs/{made.json()['id']}/links", headers=headers).json()
    assert links["audio"].startswith(f"{prefix}/v1/jobs/{made.json()['id']}/audio?token=")
    seed = client.post(f"{before}/generate_music_async", json=JOB, headers=headers).json()["request_id"]
    assert client.get(f"{before}/result/{seed}", params={"wait": 0.1}, headers=headers).status_code in {303, 400}
    slash = client.get(f"{before}/v1/jobs/", headers=headers)
    assert slash.headers.get("Location", "").partition("?")[0] in {f"{prefix}/v1/jobs", ""}
    docs = client.get(f"{before}/docs", headers=headers)
    assert docs.status_code == 200 and "'openapi.json'" in docs.text, "relative, whatever the prefix"
    servers = client.get(f"{before}/openapi.json", headers=headers).json().get("servers", [])
    assert [server["url"] for server in servers] == [prefix]


def test_the_long_wait_of_the_seed_is_followed_below_the_prefix(client: TestClient) -> None:
    answer = client.post("/music/generate_music", json=JOB)
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/music/result/")


@pytest.mark.parametrize(("before", "headers"), [("/music", {}), ("", STRIPPED)])
def test_every_dialects_addresses_of_a_song_lead_to_it_below_the_prefix(
    client: TestClient,
    before: str,
    headers: dict[str, str],
    valkey_url: str,
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clients of the seed and of ACE-Step 1.5 put a path behind their base URL; OpenAI's take a URL as it is."""
    monkeypatch.setattr(chat, "MAX_INLINE_BYTES", 1)
    slot = HandSlot(Redis.from_url(valkey_url), Store.open(SharedSettings(store_url=store_url)))
    calls = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "jazz"}]},
        "/release_task": JOB,
        "/generate_music": JOB,
    }
    found = {}
    for path, body in calls.items():
        answer = client.post(f"{before}{path}", json=body, headers=headers)
        job_id = client.get("/v1/jobs?limit=1").json()["jobs"][0]["id"]
        if answer.status_code == 303:
            assert answer.headers["Location"].startswith(("/music/v1/chat/completions/", "/music/result/"))
        slot.claim(job_id)
        slot.succeed(job_id, [b"a song"])
        found[path] = job_id
    completion = client.get(f"{before}/v1/chat/completions/{found['/v1/chat/completions']}", headers=headers).json()
    (audio,) = completion["choices"][0]["message"]["audio"]
    assert audio["audio_url"]["url"].startswith("http://localhost/music/v1/jobs/")
    task = client.post(f"{before}/query_result", json={"task_id_list": [found["/release_task"]]}, headers=headers)
    (record,) = json.loads(task.json()["data"][0]["result"])
    song = client.get(f"{before}/result/{found['/generate_music']}?format=json", headers=headers).json()
    urls = (audio["audio_url"]["url"], f"/music{record['file']}", f"/music{song['audio_path']}")
    assert [client.get(url).content for url in urls] == [b"a song"] * 3


def test_the_studio_is_at_the_prefix_with_its_slash(client: TestClient) -> None:
    bare = client.get("/music")
    assert (bare.status_code, bare.headers["Location"]) == (307, "/music/")
    assert client.get("/music/").text == client.get("/").text
    assert client.get("/music/studio/app.js").status_code == 200
    assert client.get("/musical/healthz").status_code == 404


def test_a_websocket_below_the_prefix(client: TestClient) -> None:
    job_id = client.post("/v1/jobs", json=JOB).json()["id"]
    with client.websocket_connect(f"ws://localhost/music/v1/jobs/{job_id}/events") as socket:
        assert socket.receive_json()["type"] == "status"


@pytest.mark.parametrize("wrong", ["music", "/a//b", "/a b", "/v1", "/k/x"])
def test_a_prefix_that_cannot_be_served_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match="SERINETTE_ROOT_PATH"):
        read(GatewaySettings, root_path=wrong)


def test_a_prefix_that_begins_a_path_of_the_api_is_refused(valkey_url: str, store_url: str) -> None:
    settings = GatewaySettings(redis_url=valkey_url, store_url=store_url)
    with TestClient(create_app(settings), "http://localhost") as plain:
        assert "servers" not in plain.get("/openapi.json").json()
    with pytest.raises(ConfigurationError, match="begins a path of the API"):
        create_app(settings.model_copy(update={"root_path": "/result"}))
