"""Containers as a person has them: `serinette run` and both clients, over HTTP, down to a command that really runs.

A real gateway, Valkey and S3; the test does the controller's rounds and a node's work (tests/unit/container_node.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from controller.settings import ControllerSettings
from serinette.client import Client, Retry
from serinette.errors import Conflict, InvalidSpec, NotFound
from serinette.job import JobStatus
from tests import servers
from tests.gateways import gateway
from tests.integration.test_clients import SHELL, blocks
from tests.kube import kubernetes_api
from tests.processes import eventually
from tests.unit.container_bench import IMAGE, ON, TENANT, ContainerBench, keep_song
from tests.unit.container_node import node
from tests.unit.either_client import awaited
from tests.unit.test_store import s3_settings
from tests.up import CLI, ENVIRONMENT

pytestmark = pytest.mark.timeout(300)
SONG_JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
_REPOSITORY = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Deployment:
    url: str
    bench: ContainerBench


@pytest.fixture(scope="module")
def deployment(s3: servers.S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("deployment")
    with (
        pytest.MonkeyPatch.context() as patch,
        servers.valkey(directory / "valkey") as valkey,
        kubernetes_api() as kube,
    ):
        shared = s3_settings(s3, patch, directory.name)
        where = {"store_url": shared.store_url, "store_endpoint": s3.endpoint, "store_public_endpoint": s3.endpoint}
        given = {**ON, **where, "containers_output_files": 4, "containers_log_bytes": 4096}
        settings = ControllerSettings.model_validate({"redis_url": valkey.connection_url, **given})
        set_to = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
        with (
            Redis.from_url(valkey.connection_url) as redis,
            gateway(directory, valkey.connection_url, set_to.pop("store_url"), **set_to) as running,
        ):
            bench = ContainerBench(redis, kube, settings, kube.kubeconfig(directory))
            with node(bench, directory):
                yield Deployment(running.url, bench)


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, deployment: Deployment) -> Iterator[Any]:
    if request.param == "sync":
        with Client(deployment.url) as made:
            yield made
    else:
        with awaited(deployment.url, Retry()) as made:
            yield made


@dataclass(frozen=True)
class Shell:
    """Runs commands in a directory of the test's own."""

    url: str
    directory: Path

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([_REPOSITORY, *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**ENVIRONMENT, "URL": self.url, "SERINETTE_URL": self.url, "PYTHONPATH": path}

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words,
            cwd=self.directory,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return self.spawn(*CLI, *arguments)

    def end(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        with process:
            said, errors = process.communicate(timeout=240)
        return process.returncode, said, errors

    def run(self, *arguments: str) -> tuple[int, str, str]:
        return self.end(self.start(*arguments))


@pytest.fixture
def shell(deployment: Deployment, tmp_path: Path) -> Shell:
    return Shell(deployment.url, tmp_path)


def test_files_go_in_and_come_out_and_the_log_is_printed(shell: Shell) -> None:
    (shell.directory / "notes.txt").write_bytes(b"no audio at all\n")
    (shell.directory / "data/deep").mkdir(parents=True)
    (shell.directory / "data/deep/a.json").write_text("{}")
    (shell.directory / "data/empty").write_text("")
    command = "echo $GREETING; echo $TOKEN >&2; cp -r /inputs/set /outputs; cp /inputs/notes.txt /outputs/copy.txt"
    status, said, errors = shell.run(
        *("run", IMAGE, "-i", "notes.txt", "-i", "data:set", "-e", "GREETING=hello $(HOME)", "-o", "out"),
        *("--memory", "1024", "--label", "team=a", "--", "sh", "-c", command),
    )
    assert (status, said) == (0, "hello $(HOME)\n\n"), errors
    assert (shell.directory / "out/copy.txt").read_bytes() == b"no audio at all\n"
    assert (shell.directory / "out/set/deep/a.json").read_text() == "{}"
    assert (shell.directory / "out/set/empty").read_bytes() == b""
    assert "wrote out/copy.txt" in errors
    assert "succeeded" in errors


def test_the_exit_code_is_the_containers_and_what_it_left_is_kept(shell: Shell) -> None:
    command = "echo almost; echo half > /outputs/half.txt; exit 7"
    status, said, errors = shell.run("run", IMAGE, "-o", "out", "--", "sh", "-c", command)
    assert (status, said) == (7, "almost\n"), errors
    assert "the command ended with exit code 7" in errors
    assert (shell.directory / "out/half.txt").read_text() == "half\n"


def until(path: Path) -> str:
    """A command that says `ready`, and ends when a file is there."""
    return f"echo ready; while [ ! -e {path} ]; do sleep 0.1; done; echo done"


def test_the_log_is_followed_as_it_runs(shell: Shell) -> None:
    go = shell.directory / "go"
    with shell.start("run", IMAGE, "--json", "--", "sh", "-c", until(go)) as process:
        assert process.stderr
        assert process.stdout
        lines = iter(process.stderr.readline, "")
        assert "ready\n" in lines
        go.touch()
        assert "done\n" in lines
        ended = json.loads(process.stdout.read())
        assert process.wait(120) == 0
    assert (ended["status"], ended["run"]["exit_code"]) == ("succeeded", 0)


@pytest.mark.parametrize("option", [(), ("--cancel-on-interrupt",)])
def test_ctrl_c(shell: Shell, deployment: Deployment, option: tuple[str, ...]) -> None:
    go = shell.directory / "go"
    with shell.start("run", IMAGE, *option, "--", "sh", "-c", until(go)) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    with Client(deployment.url) as client:
        job = client.list(limit=1).jobs[0]
        assert (f"Canceled job {job.id}" if option else f"watch {job.id}") in errors
        if not option:
            go.touch()
        ended = client.wait(job.id, timeout_s=120)
    assert ended.status is (JobStatus.CANCELED if option else JobStatus.SUCCEEDED)


def test_what_was_detached_is_watched_later(shell: Shell) -> None:
    status, said, _ = shell.run("run", IMAGE, "--detach", "--", "sh", "-c", "echo one; echo 1 > /outputs/one; exit 3")
    assert status == 0
    job_id = said.strip()
    assert shell.run("watch", job_id)[:2] == (3, "one\n")
    status, _, errors = shell.run("watch", job_id, "--output", "out")
    assert (status, (shell.directory / "out/one").read_text()) == (3, "1\n"), errors
    assert IMAGE in shell.run("jobs")[1]


def test_what_is_refused_leaves_no_upload_behind(shell: Shell, deployment: Deployment) -> None:
    (shell.directory / "a").write_text("a")
    before = {found.key for found in deployment.bench.store.list("uploads/")}
    status, _, errors = shell.run("run", "docker.io/library/alpine", "-i", "a", "--", "true")
    assert status == 1
    assert "allowed here are registry.example/audio/" in errors
    assert {found.key for found in deployment.bench.store.list("uploads/")} == before


def test_without_a_cluster_it_says_what_to_do(redis_url: str, file_store_url: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with gateway(tmp_path, redis_url, file_store_url) as running:
        for files in ((), ("-i", "a")):
            status, said, errors = Shell(running.url, tmp_path).run("run", IMAGE, *files, "--", "true")
            assert (status, said) == (1, "")
            assert "on a laptop, run the image with podman or docker" in " ".join(errors.split())


def test_a_client_follows_and_fetches(client: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    command = f"{until(go)}; mkdir /outputs/deep; echo 1 > /outputs/deep/one"
    job = client.containers.submit(IMAGE, ["sh", "-c", command], gpus=1, labels={"team": "b"}, env={"A": "1"})
    assert (job.pool, job.labels, job.container.gpus) == ("containers", {"team": "b"}, 1)
    lines = client.containers.follow(job.id)
    assert next(lines) == "ready"
    assert client.containers.log(job.id) == "ready\n"
    assert client.get(job.id).run is None
    go.touch()
    assert list(lines) == ["done"]
    ended = client.wait(job.id, timeout_s=120)
    assert ended.status is JobStatus.SUCCEEDED
    assert client.containers.log(job.id) == "ready\ndone\n"
    assert [output.name for output in ended.run.outputs] == ["deep/one"]
    assert client.containers.download(job.id, tmp_path / "out") == (tmp_path / "out/deep/one",)
    assert (tmp_path / "out/deep/one").read_text() == "1\n"
    with pytest.raises(InvalidSpec):
        client.containers.submit(IMAGE, memory_mib=1)
    client.erase(job.id)
    with pytest.raises(NotFound):
        client.containers.log(job.id)


def test_an_attempt_that_is_tried_again_has_a_log_of_its_own(deployment: Deployment, tmp_path: Path) -> None:
    seen, go = tmp_path / "seen", tmp_path / "go"
    command = f"if [ -e {seen} ]; then echo second; else touch {seen}; {until(go)}; exit 1; fi"
    with Client(deployment.url) as client:
        job = client.containers.submit(IMAGE, ["sh", "-c", command], retries=1)
        lines = client.containers.follow(job.id)
        assert next(lines) == "ready"  # its log goes when the next attempt begins
        go.touch()
        assert [line for line in lines if line != "done"] == ["second"]
        assert client.containers.log(job.id) == "second\n"


def test_uploads_songs_and_whole_jobs_arrive_as_files(deployment: Deployment, tmp_path: Path) -> None:
    """Through the presigned URLs of the manifest and controller/containers/steps.py, against a real S3."""
    keep_song(deployment.bench.store, TENANT, SONG_JOB, b"a song")
    with Client(deployment.url) as client:
        upload = client.containers.upload(b"brought")
        with pytest.raises(InvalidSpec, match="there is no"):
            client.submit("jazz", task="cover", source_audio=upload.id)
        earlier = client.containers.submit(IMAGE, ["sh", "-c", "mkdir /outputs/a; echo earlier > /outputs/a/b"])
        client.wait(earlier.id, timeout_s=120)
        inputs = [
            {"path": "brought", "upload": upload.id},
            {"path": "song.mp3", "artifact": f"{SONG_JOB}/0"},
            {"path": "before", "prefix": f"songs/{earlier.id}/"},
        ]
        command = ["sh", "-c", "cd /inputs; cat brought song.mp3 before/a/b"]
        job = client.containers.submit(IMAGE, command, inputs=inputs)
        assert "".join(client.containers.follow(job.id)) == "broughta songearlier"
        assert client.wait(job.id).status is JobStatus.SUCCEEDED
        gone = client.containers.upload(b"gone")
        client.erase_upload(gone.id)
        with pytest.raises(InvalidSpec, match="of yours"):
            client.containers.submit(IMAGE, inputs=[{"path": "a", "upload": gone.id}])


def test_a_log_over_http(deployment: Deployment, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with Client(deployment.url) as client, httpx.Client(base_url=deployment.url, timeout=60) as http:
        job = client.containers.submit(IMAGE, ["sh", "-c", until(go)])
        path = f"/v1/jobs/{job.id}/log"
        assert eventually(lambda: http.get(path).text == "ready\n", 120)
        live = http.get(path)
        assert (live.status_code, live.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert live.headers["etag"] == '"1-6"'
        assert http.get(path, headers={"If-None-Match": '"1-6"'}).status_code == 304
        go.touch()
        client.wait(job.id, timeout_s=120)
        kept = http.get(path)
        assert (kept.text, kept.headers["etag"]) == ("ready\ndone\n", '"1-11"')
        assert http.get(path, headers={"Range": "bytes=-5"}).text == "done\n"
        assert http.get(path, headers={"If-None-Match": '"1-11"'}).status_code == 304
        song = client.submit("jazz", duration_s=1)
        refused = http.get(f"/v1/jobs/{song.id}/log")
        assert (refused.status_code, "is a song and has no log" in refused.json()["detail"]) == (404, True)
        with pytest.raises(Conflict):
            client.cancel(job.id)


def test_the_blocks_about_containers(deployment: Deployment, shell: Shell) -> None:
    (block,) = blocks("python.md", "python", "Containers")
    status, said, errors = shell.end(
        shell.spawn(sys.executable, "-c", block.replace("http://127.0.0.1:8019", deployment.url))
    )
    assert (status, "succeeded 0" in said) == (0, True), said + errors
    assert (shell.directory / "out/copy.txt").is_file()
    (shell.directory / "part.mp3").write_bytes(b"1" * 1000)  # as blocks before have it
    for page, section in (("rest.md", "Containers"), ("containers.md", "From a terminal")):
        found = blocks(page, "bash", section)
        assert found
        status, said, errors = shell.end(shell.spawn("bash", "-c", SHELL + "\n".join(found)))
        assert status == 0, said + errors
    assert (shell.directory / "loud/words.txt").read_text() == "LA LA\n"
    assert "later\n" in said
