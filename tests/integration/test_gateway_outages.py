"""Queue or store away: a clear answer within bounded time, nothing lost, and no restart needed when they come back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis import Redis

from tests import servers
from tests.gateways import RunningGateway, gateway, problem

SONG = {"prompt": "x"}
UNKNOWN_ID = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
CALLS = [
    ("POST", "/v1/jobs", SONG),
    ("GET", "/v1/jobs", None),
    ("GET", f"/v1/jobs/{UNKNOWN_ID}", None),
    ("GET", f"/v1/jobs/{UNKNOWN_ID}/audio", None),
    ("GET", f"/v1/jobs/{UNKNOWN_ID}/events", None),
    ("POST", f"/v1/jobs/{UNKNOWN_ID}/cancel", None),
    ("DELETE", f"/v1/jobs/{UNKNOWN_ID}", None),
    ("GET", "/v1/queue", None),
    ("GET", "/v1/models", None),
]


@dataclass
class Deployment:
    """A gateway with a Valkey that can be killed, frozen and started again."""

    gateway: RunningGateway
    port: int
    directory: Path

    def signal_valkey(self, sign: signal.Signals) -> int:
        with Redis(port=self.port) as redis:
            pid = int(redis.info("server")["process_id"])
        os.kill(pid, sign)
        return pid


@pytest.fixture
def deployment(tmp_path: Path, file_store_url: str) -> Iterator[Deployment]:
    port = servers.free_ports(1)[0]
    directory = tmp_path / "valkey"
    with (
        servers.valkey(directory, port=port, append_only=True),
        gateway(tmp_path, f"redis://127.0.0.1:{port}", file_store_url, redis_timeout_s=0.5) as running,
    ):
        yield Deployment(running, port, directory)


def assert_all_say_unavailable(url: str) -> None:
    with ThreadPoolExecutor(len(CALLS)) as threads:
        answers = list(threads.map(lambda call: httpx.request(call[0], url + call[1], json=call[2], timeout=30), CALLS))
    for answer in answers:
        refusal = problem(answer)
        assert (refusal["status"], refusal["code"], refusal["retryable"]) == (503, "queue_unavailable", True), refusal
        assert int(answer.headers["retry-after"]) > 0
    assert problem(httpx.get(f"{url}/readyz", timeout=30))["status"] == 503
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_valkey_dies_and_comes_back(deployment: Deployment) -> None:
    url = deployment.gateway.url
    job_id = httpx.post(f"{url}/v1/jobs", json=SONG, headers={"Idempotency-Key": "k"}).json()["id"]
    deployment.signal_valkey(signal.SIGKILL)
    assert_all_say_unavailable(url)
    with servers.valkey(deployment.directory, port=deployment.port, append_only=True):
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert httpx.get(f"{url}/v1/jobs/{job_id}").json()["status"] == "queued"
        again = httpx.post(f"{url}/v1/jobs", json=SONG, headers={"Idempotency-Key": "k"})
        assert (again.json()["id"], again.headers["idempotency-replayed"]) == (job_id, "true")
        assert [job["id"] for job in httpx.get(f"{url}/v1/jobs").json()["jobs"]] == [job_id]
    assert "Traceback" not in deployment.gateway.log.read_text()


def test_valkey_freezes(deployment: Deployment) -> None:
    url = deployment.gateway.url
    pid = deployment.signal_valkey(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(100) as threads:  # more than the gateway has
            waiting = [threads.submit(httpx.get, f"{url}/v1/jobs", timeout=60) for _ in range(100)]
            assert httpx.get(f"{url}/healthz", timeout=5).status_code == 200
            assert problem(httpx.get(f"{url}/readyz", timeout=10))["retryable"] is True
            assert {problem(asked.result())["code"] for asked in waiting} == {"queue_unavailable"}
        assert_all_say_unavailable(url)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert httpx.post(f"{url}/v1/jobs", json=SONG).status_code == 202


def test_waits_and_streams_outlive_a_short_outage(deployment: Deployment) -> None:
    url = deployment.gateway.url
    job_id = httpx.post(f"{url}/v1/jobs", json=SONG).json()["id"]
    with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/events", timeout=30) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("id: ")
        deployment.signal_valkey(signal.SIGKILL)
        rest = list(lines)  # the stream ends, and a client comes again with the last id
    assert not any("Traceback" in line for line in rest)
    with servers.valkey(deployment.directory, port=deployment.port, append_only=True):
        with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/events", timeout=30) as answer:
            assert next(answer.iter_lines()).startswith("id: ")
        assert httpx.post(f"{url}/v1/jobs/{job_id}/cancel").json()["status"] == "canceled"


def test_the_store_is_away(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "any")
    endpoint = f"http://127.0.0.1:{servers.free_ports(1)[0]}"
    with gateway(tmp_path, redis_url, "s3://songs/x", store_endpoint=endpoint) as running:
        unready = problem(httpx.get(f"{running.url}/readyz", timeout=30))
        assert unready["status"] == 503
        assert unready["code"] in {"store_unavailable", "unavailable"}
        assert httpx.get(f"{running.url}/healthz").status_code == 200
        for method, path, body in [
            ("GET", f"/v1/jobs/{UNKNOWN_ID}", None),
            ("POST", "/v1/jobs", {"reference_audio": "upload-1"}),
            ("GET", f"/v1/uploads/upload-{'0' * 32}", None),
        ]:
            answer = httpx.request(method, running.url + path, json=body, timeout=40)
            refusal = problem(answer)
            assert (refusal["status"], refusal["code"], refusal["retryable"]) == (503, "store_unavailable", True)
        # A song needs no store until it is generated.
        assert httpx.post(f"{running.url}/v1/jobs", json=SONG).status_code == 202
