"""Containers and attackers: each thing that one might try is refused, or comes to nothing.

Elsewhere: an image outside the list, a label with a newline (test_containers.py), names of outputs that lead elsewhere,
ten gigabytes of log (test_containers_run.py), links and pipes among the outputs (integration/test_container_steps.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from redis import Redis

from serinette.client import AsyncClient, Client
from serinette.client.containers import place_of
from serinette.container import Output
from serinette.errors import SerinetteError
from serinette.job import Job, JobStatus, now
from serinette.names import Keys, Lane, upload_file_key, upload_record_key
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.gateways import problem
from tests.unit.container_bench import IMAGE, ON, keep_song
from tests.unit.tenants import bearing, key_of, serving, settings_of
from tests.unit.test_containers_manifest import EVERYTHING, made, pod_of_job

JOB_ID = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
UPLOAD, FILE = "upload-" + "0" * 32, "upload-" + "1" * 32


@pytest.mark.parametrize(
    "stolen",
    [
        {"artifact": f"{JOB_ID}/0"},
        {"prefix": f"songs/{JOB_ID}/"},
        {"upload": UPLOAD},
        {"upload": FILE},
        {"prefix": f"uploads/{FILE}/"},
    ],
)
async def test_another_keys_artifact_is_no_input(
    redis: Redis, redis_url: str, file_store_url: str, stolen: dict[str, str]
) -> None:
    mine, others = key_of(redis, "mine"), key_of(redis, "others")
    settings = settings_of(redis_url, file_store_url, **ON)
    store = Store.open(settings)
    keep_song(store, "mine", JOB_ID, b"a song")
    store.put(upload_record_key("mine", UPLOAD), b"{}")
    store.put(upload_file_key("mine", FILE), b"{}")
    body = {"image": IMAGE, "inputs": [{"path": "a", **stolen}]}
    async with serving(settings) as (_, client):
        refused = await client.post("/v1/containers", json=body, headers=bearing(others))
        assert (refused.status_code, problem(refused)["field"]) == (422, "inputs")
        assert not redis.zcard(Keys().live), "nothing was stored"
        assert (await client.post("/v1/containers", json=body, headers=bearing(mine))).status_code == 202


async def test_another_key_reads_neither_log_nor_outputs(redis: Redis, redis_url: str, file_store_url: str) -> None:
    mine, others = key_of(redis, "mine"), key_of(redis, "others")
    async with serving(settings_of(redis_url, file_store_url, **ON)) as (_, client):
        job = (await client.post("/v1/containers", json={"image": IMAGE}, headers=bearing(mine))).json()
        redis.set(Keys().log(job["id"]), "a secret\n")
        path = f"/v1/jobs/{job['id']}"
        assert (await client.get(f"{path}/log", headers=bearing(mine))).text == "a secret\n"
        for what in ("log", "outputs/a"):
            refused = await client.get(f"{path}/{what}", headers=bearing(others))
            assert (refused.status_code, problem(refused)["code"]) == (404, "not_found")


async def test_without_containers_the_store_cannot_be_filled_with_files(redis_url: str, file_store_url: str) -> None:
    settings = settings_of(redis_url, file_store_url, auth=False)
    async with serving(settings) as (_, client):
        refused = await client.post("/v1/files", content=b"anything")
    assert (refused.status_code, problem(refused)["code"]) == (501, "unsupported")
    assert list(Store.open(settings).list("uploads/")) == []


async def test_a_file_is_bounded_as_audio_is_and_no_song_is_made_from_it(redis_url: str, file_store_url: str) -> None:
    settings = settings_of(redis_url, file_store_url, **ON, auth=False, max_upload_bytes=2048)
    async with serving(settings) as (_, client):
        refused = await client.post("/v1/files", content=b"x" * 2049)
        assert (refused.status_code, problem(refused)["code"]) == (413, "too_large")
        kept = (await client.post("/v1/files", content=b"x" * 2048)).json()
        assert (await client.get(f"/v1/uploads/{kept['id']}")).json() == kept
        song = {"prompt": "jazz", "task": "cover", "source_audio": kept["id"]}
        assert problem(await client.post("/v1/jobs", json=song))["field"] == "source_audio"
        assert (await client.delete(f"/v1/uploads/{kept['id']}")).status_code == 204
    assert list(Store.open(settings).list("uploads/")) == []


EVIL = ["../evil", "a/../../evil", "/tmp/evil", ".bashrc", "a\x1b[2Jb", "", "a/" * 20]


@pytest.mark.parametrize("name", EVIL)
def test_a_server_that_names_outputs_elsewhere_has_nothing_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(SerinetteError, match="which is not written"):
        place_of(tmp_path / "out", Output(name=name, key="k", size_bytes=1, sha256=""))
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def evil_job() -> Job:
    """As a server answers of one whose second output leads elsewhere."""
    outputs: list[dict[str, Any]] = [
        {"name": name, "key": "k", "size_bytes": 4, "sha256": ""} for name in ("good", "../evil")
    ]
    fields = {"id": JOB_ID, "tenant": "t", "status": JobStatus.SUCCEEDED, "spec": GenerationSpec(prompt="")}
    times = {"pool": "containers", "lane": Lane.NORMAL, "created_at": now()}
    return Job.model_validate({**fields, **times, "run": {"exit_code": 0, "outputs": outputs}})


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_neither_client_writes_elsewhere(kind: type[Any], tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(200, content=b"evil")

    client = kind("http://gateway", transport=httpx.MockTransport(answer))
    with pytest.raises(SerinetteError, match="which is not written"):
        downloading = client.containers.download(evil_job(), tmp_path / "out")
        anyio.run(lambda: downloading)
    assert asked == [], "all names are looked at before anything is fetched"
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("spec", [{}, EVERYTHING])
def test_a_fork_bomb_ends_at_its_own_memory_limit(spec: dict[str, Any]) -> None:
    """Each process costs memory that its container's limit counts; podPidsLimit of the kubelet ends it sooner."""
    pod = pod_of_job(made(**spec))
    assert pod["shareProcessNamespace"] is False and pod["hostPID"] is False
    for each in (*pod["initContainers"], *pod["containers"]):
        assert each["resources"]["limits"]["memory"]
    (main,) = pod["containers"]
    assert main["resources"]["requests"] == main["resources"]["limits"], "what it takes is its own, never a neighbour's"


def test_what_a_client_writes_becomes_neither_name_nor_label_nor_annotation() -> None:
    job = made(command=["evil-word"], env={"EVIL": "evil-word"}, args=["evil-word\nkind: Pod"])
    assert "evil-word" not in json.dumps([job["metadata"], job["spec"]["template"]["metadata"]])
    assert "evil-word" not in json.dumps(pod_of_job(job)["initContainers"])
