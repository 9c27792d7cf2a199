"""The last version's workers with this one's gateway and controller, and the reverse, as an upgrade has them side by
side: the last `v*` tag, or, as long as there is none, the commit found here."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from serinette.leash import leashed
from tests.gateways import RunningGateway, gateway
from tests.pod import Pod, pod
from tests.processes import eventually

ROOT = Path(__file__).parents[2]
# The commit of main that brought one record per job, by a file that it added: what is older is drained first
# (docs/operator.md), and never runs beside it. To go once a release is tagged.
PINNED = (
    "log",
    "--first-parent",
    "-m",
    "--diff-filter=A",
    "--format=%H",
    "--reverse",
    "--",
    "serinette/jobs/transitions.lua",
)
QUICK = {"heartbeat_s": 0.5, "heartbeat_ttl_s": 2, "interval_s": 0.2, "lease_s": 2}
http = httpx.Client(timeout=60)
SONG = {"duration_s": 1, "format": "wav"}


def git(*arguments: str) -> bytes | None:
    """The output of git; None if it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


@pytest.fixture(scope="module")
def last_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source of the last version."""
    tags = (git("tag", "--list", "v*", "--sort=-v:refname", "--no-contains", "HEAD") or b"").decode().split()
    version = tags or (git(*PINNED) or b"").decode().split()
    archive = git("archive", "--format=tar", version[0]) if version else None
    if archive is None:
        pytest.skip("the last version is not in this checkout: a clone with its history and tags has it")
    directory = tmp_path_factory.mktemp("last-version")
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(directory, filter="data")
    return directory


def environment(source: Path | None) -> dict[str, str]:
    """For processes of that source, wherever they are started; of this one if None."""
    return {"PYTHONPATH": str(source or ROOT), "PYTHONSAFEPATH": "1"}


def assert_runs(source: Path, given: dict[str, str]) -> None:
    """Else the test would compare this version with itself."""
    code = "import api, gpu_worker, tests.engines as it; print(api.__file__, gpu_worker.__file__, it.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **given}, capture_output=True, text=True, check=True
    )
    assert all(Path(file).is_relative_to(source) for file in done.stdout.split()), done.stdout


@dataclass
class Deployment:
    """A gateway and a controller of one version; workers of any."""

    gateway: RunningGateway
    pod: Pod

    def work(self, source: Path | None) -> subprocess.Popen[bytes]:
        self.pod.environment.update(environment(source))
        return self.pod.start()

    def submit(self, prompt: str, **options: object) -> str:
        posted = http.post(f"{self.gateway.url}/v1/jobs", json={"prompt": prompt, **SONG, **options})
        assert posted.status_code == 202, posted.text
        return posted.headers["location"]

    def seen(self, path: str) -> dict[str, object]:
        answer: dict[str, object] = http.get(self.gateway.url + path).json()
        return answer

    def ended(self, path: str) -> dict[str, object]:
        assert eventually(lambda: self.seen(path)["status"] not in {"queued", "running"}, 90), self.pod.log()
        return self.seen(path)


@contextmanager
def deploy(directory: Path, redis_url: str, source: Path | None) -> Iterator[Deployment]:
    with pytest.MonkeyPatch.context() as patch, pod(directory, redis_url, QUICK) as worker_pod:
        for name, value in environment(source).items():
            patch.setenv(name, value)
        with (directory / "controller.log").open("wb") as log:
            # Where the pinned commit has it. To go with that.
            module = "controller" if (source or ROOT).joinpath("controller").is_dir() else "api.maintenance"
            command = leashed([sys.executable, "-m", module])
            given = {**worker_pod.environment, **environment(source)}
            controller = subprocess.Popen(command, env=given, stdout=log, stderr=log)
        try:
            with gateway(directory, redis_url, worker_pod.environment["SERINETTE_STORE_URL"]) as running:
                yield Deployment(running, worker_pod)
        finally:
            controller.kill()
            controller.wait()


def outcomes(job: dict[str, object]) -> list[str]:
    attempts = job["attempts"]
    assert isinstance(attempts, list)
    return [attempt["outcome"] for attempt in attempts]


def assert_generated(deployment: Deployment, path: str, *attempts: str) -> None:
    job = deployment.ended(path)
    assert (job["status"], outcomes(job)) == ("succeeded", list(attempts)), job
    result = job["result"]
    assert isinstance(result, dict)
    audio = http.get(f"{deployment.gateway.url}{path}/audio", follow_redirects=True)
    assert hashlib.sha256(audio.content).hexdigest() == result["artifacts"][0]["sha256"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("old", ["worker", "gateway and controller"])
def test_neighbouring_versions_generate_together(tmp_path: Path, redis_url: str, last_version: Path, old: str) -> None:
    assert_runs(last_version, environment(last_version))
    theirs, ours = (last_version, None) if old == "worker" else (None, last_version)
    with deploy(tmp_path, redis_url, ours) as deployment:
        worker = deployment.work(theirs)
        generated, twice = deployment.submit("x", variations=2), deployment.submit("crash once TOKEN")
        broken, canceled = deployment.submit("nan"), deployment.submit("slow 60")
        assert_generated(deployment, generated, "succeeded")
        assert_generated(deployment, twice, "failed", "succeeded")
        assert eventually(lambda: deployment.seen(canceled)["status"] == "running", 60)
        assert http.post(f"{deployment.gateway.url}{canceled}/cancel").is_success
        assert deployment.ended(canceled)["status"] == "canceled"
        failed = deployment.ended(broken)
        assert isinstance(failed["error"], dict) and failed["error"]["code"] == "invalid_output"
        events = http.get(f"{deployment.gateway.url}{twice}/events", headers={"Last-Event-ID": "0-0"}).text
        assert events.count("event: succeeded") == events.count("event: attempt") == 1

        lost = deployment.submit("slow 3")
        assert eventually(lambda: deployment.seen(lost)["status"] == "running", 60)
        worker.kill()
        deployment.work(ours)
        assert_generated(deployment, lost, "failed", "succeeded")
