"""Containers as jobs, at the gateway: what may be asked for, and by whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from redis import Redis
from rq.suspension import suspend

from api.app import create_app
from api.queue.pool_status import MAX_AGE_S
from api.settings import GatewaySettings
from controller.autoscaling import Brakes
from controller.settings import ControllerSettings
from serinette.container import ContainerSpec, allowed_by, is_file_name
from serinette.names import Keys
from serinette.store import Store
from tests.gateways import problem
from tests.unit.tenants import bearing, key_of, serving, settings_of

DIGEST = "@sha256:" + "a" * 64
IMAGE = "registry.example/audio/stems:1"
UPLOAD = "upload-" + "0" * 32
UNKNOWN_JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
ON = {
    "auth": False,
    "containers": True,
    "containers_images": ["registry.example/audio/"],
    "containers_writable_images": ["registry.example/audio/free"],
    "containers_secrets": {"hub": {"secret": "hub-token", "key": "token"}},
    "containers_machines": {"big": {"node_selector": {"gpu": "h100"}}},
    "containers_tenants": {"small": {"gpus": 0, "cpu": 1, "memory_mib": 512, "disk_mib": 512, "timeout_s": 60}},
    "containers_max_gpus": 2,
    "containers_namespace": "jobs",
    "containers_steps_image": "registry.example/serinette/gateway:1",
}


@pytest.fixture
def settings(redis_url: str, file_store_url: str) -> GatewaySettings:
    return settings_of(redis_url, file_store_url, **ON)


@pytest.fixture
async def http(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as (_, client):
        yield client


def refusal(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem that it must be."""
    assert answer.status_code == status, answer.text
    return problem(answer)


@pytest.mark.parametrize(
    ("entry", "image", "allowed"),
    [
        ("registry.example", IMAGE, True),
        ("registry.example", "registry.example.evil.org/audio/stems:1", False),
        ("registry.example:5000", "registry.example:5000/a/b", True),
        ("registry.example:5000", "registry.example/a/b", False),
        ("registry.example/audio/", IMAGE, True),
        ("registry.example/audio/", "registry.example/audios/stems:1", False),
        ("registry.example/audio/stems", IMAGE, True),
        ("registry.example/audio/stems", "registry.example/audio/stems2:1", False),
        ("registry.example/audio/stems", "registry.example/audio/stems/more:1", False),
        ("registry.example/audio/stems:1", IMAGE, True),
        ("registry.example/audio/stems:1", IMAGE + DIGEST, True),
        ("registry.example/audio/stems:1", "registry.example/audio/stems:2", False),
        ("registry.example/audio/stems:1", "registry.example/audio/stems", False),
        ("registry.example/audio/stems" + DIGEST, IMAGE + DIGEST, True),
        ("registry.example/audio/stems" + DIGEST, IMAGE, False),
    ],
)
def test_the_allow_list(entry: str, image: str, allowed: bool) -> None:
    assert allowed_by(image, [entry]) is allowed


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"image": "stems"}, "image"),
        ({"image": "registry.example/a/../b"}, "image"),
        ({"image": IMAGE + "\n"}, "image"),
        ({"env": {"A B": "x"}}, "env"),
        ({"env": {"A": "x\x00"}}, "env"),
        ({"env": {"A": "x"}, "secrets": {"A": "hub"}}, "secrets"),
        ({"inputs": [{"path": "../etc/passwd", "upload": UPLOAD}]}, "inputs"),
        ({"inputs": [{"path": "/etc/passwd", "upload": UPLOAD}]}, "inputs"),
        ({"inputs": [{"path": "a"}]}, "inputs"),
        ({"inputs": [{"path": "a", "upload": UPLOAD, "artifact": f"{UNKNOWN_JOB}/0"}]}, "inputs"),
        ({"inputs": [{"path": "a", "upload": UPLOAD}, {"path": "a/b", "upload": UPLOAD}]}, "inputs"),
        ({"inputs": [{"path": "a", "prefix": "songs/../"}]}, "inputs"),
        ({"inputs": [{"path": "a", "prefix": "songs/other-tenant/"}]}, "inputs"),
        ({"gpus": -1}, "gpus"),
        ({"args": ["x" * 8000] * 33}, "args"),
        ({"host_network": True}, "host_network"),
    ],
)
def test_what_no_deployment_takes(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ContainerSpec.model_validate({"image": IMAGE, **wrong})
    assert field in str(refused.value)


@pytest.mark.parametrize("name", ["../a", "a/../b", "/a", ".hidden", "a//b", "a\nb", "a b", "", "a/", "ä", "x" * 129])
def test_outputs_that_may_not_be_called_so(name: str) -> None:
    assert not is_file_name(name)
    assert is_file_name("adapter/weights.safetensors")


def test_a_spec_survives_the_wire() -> None:
    spec = ContainerSpec.model_validate({"image": IMAGE, "inputs": [{"path": "a", "upload": UPLOAD}], "gpus": 1})
    wire = json.loads(json.dumps(spec.to_wire()))
    assert ContainerSpec.from_wire({**wire, "of a newer version": 1}) == spec


async def test_songs_and_containers_say_that_an_operator_suspended_the_queue(
    http: httpx.AsyncClient, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    song = (await http.post("/v1/jobs", json={"prompt": "a waltz"})).json()["id"]
    container = (await http.post("/v1/containers", json={"image": IMAGE})).json()["id"]
    settings = ControllerSettings.model_validate({"redis_url": redis_url, "store_url": f"file://{tmp_path}"})
    suspend(redis)
    Brakes(redis, Store.open(settings), settings)()
    await asyncio.sleep(MAX_AGE_S)  # the pools' status is shared for so long
    for job_id in (song, container):
        assert (await http.get(f"/v1/jobs/{job_id}")).json()["waiting_code"] == "suspended"


async def test_a_container_is_a_job(http: httpx.AsyncClient, redis: Redis) -> None:
    body = {"image": IMAGE, "command": ["separate"], "gpus": 1, "lane": "high", "labels": {"team": "a"}, "retries": 2}
    answer = await http.post("/v1/containers", json=body, headers={"Idempotency-Key": "one"})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["status"], job["pool"], job["lane"]) == ("queued", "containers", "high")
    assert job["container"]["command"] == ["separate"]
    assert "containers begin in their order" in job["waiting_for"]
    assert redis.lrange("rq:queue:containers.high", 0, -1) == [job["id"].encode()]

    again = await http.post("/v1/containers", json=body, headers={"Idempotency-Key": "one"})
    assert (again.json()["id"], again.headers["Idempotency-Replayed"]) == (job["id"], "true")
    other = await http.post("/v1/containers", json={**body, "gpus": 2}, headers={"Idempotency-Key": "one"})
    assert refusal(other, 409)["code"] == "idempotency_conflict"

    listed = (await http.get("/v1/jobs", params={"label": "team=a"})).json()["jobs"]
    assert [each["id"] for each in listed] == [job["id"]]
    assert refusal(await http.get(f"/v1/jobs/{job['id']}/audio"), 409)["code"] == "not_finished"
    assert refusal(await http.get(f"/v1/jobs/{job['id']}/outputs/a"), 409)["code"] == "not_finished"
    canceled = await http.post(f"/v1/jobs/{job['id']}/cancel")
    assert canceled.json()["status"] == "canceled"
    assert refusal(await http.get(f"/v1/jobs/{job['id']}/audio"), 404)["code"] == "not_found"
    assert refusal(await http.get(f"/v1/jobs/{job['id']}/outputs/..%2Fa"), 404)["code"] == "not_found"
    assert (await http.delete(f"/v1/jobs/{job['id']}")).status_code == 204
    assert not redis.zcard(Keys().live)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"image": "registry.example/other/stems:1"}, "image"),
        ({"writable_root": True}, "writable_root"),
        ({"secrets": {"TOKEN": "root-password"}}, "secrets"),
        ({"pool": "small"}, "pool"),
        ({"gpus": 2}, "gpus"),
        ({"memory_mib": 40_000}, "memory_mib"),
        ({"inputs": [{"path": "a", "upload": UPLOAD}]}, "inputs"),
        ({"inputs": [{"path": "a", "artifact": f"{UNKNOWN_JOB}/0"}]}, "inputs"),
        ({"inputs": [{"path": "a", "prefix": f"songs/{UNKNOWN_JOB}/"}]}, "inputs"),
        ({"labels": {"a": "b\nserinette.dev/role: admin"}}, "labels"),
        ({"labels": {"a\nb": "c"}}, "labels"),
    ],
)
async def test_what_this_deployment_refuses(
    http: httpx.AsyncClient, redis: Redis, wrong: dict[str, Any], field: str
) -> None:
    refused = refusal(await http.post("/v1/containers", json={"image": IMAGE, **wrong}), 422)
    assert (refused["code"], refused["field"].split(".")[0]) == ("invalid_spec", field)
    assert not redis.zcard(Keys().live), "nothing was stored"


async def test_ceilings_are_each_tenants_own(settings: GatewaySettings, redis: Redis) -> None:
    key = key_of(redis, "small")
    async with serving(settings.model_copy(update={"auth": True})) as (_, client):
        small = {"image": IMAGE, "memory_mib": 512, "disk_mib": 512}
        fits = await client.post("/v1/containers", json=small, headers=bearing(key))
        assert (fits.status_code, fits.json()["timeout_s"]) == (202, 60)
        for wrong in ({"cpu": 2}, {"memory_mib": 513}, {"timeout_s": 61}, {"gpus": 1}):
            refused = await client.post("/v1/containers", json={**small, **wrong}, headers=bearing(key))
            assert refusal(refused, 422)["field"] == next(iter(wrong))


async def test_without_a_cluster_it_is_501_with_a_reason(redis_url: str, file_store_url: str) -> None:
    async with serving(settings_of(redis_url, file_store_url, auth=False)) as (_, client):
        refused = refusal(await client.post("/v1/containers", json={"image": IMAGE}), 501)
    assert refused["code"] == "unsupported"
    assert "SERINETTE_CONTAINERS" in refused["detail"]


def test_on_means_somewhere(redis_url: str, file_store_url: str) -> None:
    with pytest.raises(ValidationError, match="SERINETTE_CONTAINERS_NAMESPACE"):
        create_app(settings_of(redis_url, file_store_url, containers=True))
