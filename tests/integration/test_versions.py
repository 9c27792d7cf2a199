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
# The commit of main that brought one record per job: what is older is drained first (docs/operator.md), and never runs
# beside it. To go once a release is tagged.
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
    """What git says; None where it cannot."""
    told = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return told.stdout if told.returncode == 0 else None


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
    told = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **given}, capture_output=True, text=True, check=True
    )
    assert all(Path(file).is_relative_to(source) for file in told.stdout.split()), told.stdout


@dataclass
class House:
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
def house(directory: Path, redis_url: str, source: Path | None) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch, pod(directory, redis_url, QUICK) as home:
        for name, value in environment(source).items():
            patch.setenv(name, value)
        with (directory / "controller.log").open("wb") as log:
            # Where the pinned commit has it. To go with that.
            module = "controller" if (source or ROOT).joinpath("controller").is_dir() else "api.maintenance"
            command = leashed([sys.executable, "-m", module])
            given = {**home.environment, **environment(source)}
            keeper = subprocess.Popen(command, env=given, stdout=log, stderr=log)
        try:
            with gateway(directory, redis_url, home.environment["SERINETTE_STORE_URL"]) as running:
                yield House(running, home)
        finally:
            keeper.kill()
            keeper.wait()


def outcomes(job: dict[str, object]) -> list[str]:
    attempts = job["attempts"]
    assert isinstance(attempts, list)
    return [attempt["outcome"] for attempt in attempts]


def assert_sung(home: House, path: str, *attempts: str) -> None:
    job = home.ended(path)
    assert (job["status"], outcomes(job)) == ("succeeded", list(attempts)), job
    result = job["result"]
    assert isinstance(result, dict)
    audio = http.get(f"{home.gateway.url}{path}/audio", follow_redirects=True)
    assert hashlib.sha256(audio.content).hexdigest() == result["artifacts"][0]["sha256"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("old", ["worker", "gateway and controller"])
def test_neighbouring_versions_sing_together(tmp_path: Path, redis_url: str, last_version: Path, old: str) -> None:
    assert_runs(last_version, environment(last_version))
    theirs, ours = (last_version, None) if old == "worker" else (None, last_version)
    with house(tmp_path, redis_url, ours) as home:
        worker = home.work(theirs)
        sung, twice = home.submit("x", variations=2), home.submit("crash once TOKEN")
        broken, canceled = home.submit("nan"), home.submit("slow 60")
        assert_sung(home, sung, "succeeded")
        assert_sung(home, twice, "failed", "succeeded")
        assert eventually(lambda: home.seen(canceled)["status"] == "running", 60)
        assert http.post(f"{home.gateway.url}{canceled}/cancel").is_success
        assert home.ended(canceled)["status"] == "canceled"
        failed = home.ended(broken)
        assert isinstance(failed["error"], dict) and failed["error"]["code"] == "invalid_output"
        events = http.get(f"{home.gateway.url}{twice}/events", headers={"Last-Event-ID": "0-0"}).text
        assert events.count("event: succeeded") == events.count("event: attempt") == 1

        lost = home.submit("slow 3")
        assert eventually(lambda: home.seen(lost)["status"] == "running", 60)
        worker.kill()
        home.work(ours)
        assert_sung(home, lost, "failed", "succeeded")
