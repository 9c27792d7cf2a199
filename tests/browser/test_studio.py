"""The studio, as a person uses it: journeys.mjs drives Chromium at real processes.

Six journeys run with the suite; the others take longer, and `make verify` runs them too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from serinette.credentials import Limits
from serinette.names import Right
from tests.stack import Stack, running
from tests.unit.tenants import key_of

pytestmark = pytest.mark.browser

HERE = Path(__file__).parent
# The second has no worker.
POOLS = '[{"name": "default", "model_name": "sine"}, {"name": "far", "model_name": "elsewhere"}]'
# A killed worker is missed in a second.
QUICK = {"SERINETTE_HEARTBEAT_S": "0.3", "SERINETTE_HEARTBEAT_TTL_S": "2", "SERINETTE_INTERVAL_S": "0.5"}
SINES = {"SERINETTE_ENGINE_MODULE": "tests.engines"}
LONGEST_S = 240
LONGER = ("accessible", "queue", "history", "parts", "shared")


def driver() -> tuple[str, str]:
    """Node and Chromium, where what drives the one from the other is installed too."""
    node, chromium = shutil.which("node"), shutil.which("chromium") or shutil.which("google-chrome")
    if node is None or chromium is None or not (HERE / "node_modules").is_dir():
        pytest.skip("needs Chromium, and Node.js with `npm ci --prefix tests/browser`")
    return node, chromium


@dataclass(frozen=True, slots=True)
class Closed:
    """A gateway that asks for keys, before an engine of sines."""

    stack: Stack

    def key(self, tenant: str, limits: Limits | None = None, rights: tuple[Right, ...] = ()) -> str:
        with Redis.from_url(self.stack.redis_url) as redis:
            return key_of(redis, tenant, limits, rights=rights)

    def worker(self) -> int:
        """Process group of the worker."""
        return self.stack.processes["worker"].pid

    def replace_worker(self) -> None:
        """Another one for one that was killed."""
        self.stack.processes.pop("worker").wait()
        self.stack.start("worker", SINES)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    driver()
    settings = {"SERINETTE_AUTH": "true", "SERINETTE_POOLS": POOLS}
    parts = ("gateway", "controller")
    with running(tmp_path_factory.mktemp("closed"), shared=QUICK, gateway=settings, parts=parts) as stack:
        stack.start("worker", SINES)
        yield Closed(stack)


def begin(name: str, url: str, out: Path, key: str = "", other_key: str = "", worker: int = 0) -> subprocess.Popen[str]:
    """Set out on a journey."""
    node, chromium = driver()
    environment = {
        **os.environ,
        "CHROMIUM": chromium,
        "GATEWAY": url,
        "KEY": key,
        "OTHER_KEY": other_key,
        "OUT": str(out),
        "WORKER": str(worker),
    }
    command = [node, str(HERE / "journeys.mjs"), name]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )


def travel(name: str, url: str, out: Path, key: str = "", other_key: str = "") -> None:
    """Go one journey."""
    arrive(begin(name, url, out, key, other_key))


def arrive(journey: subprocess.Popen[str]) -> None:
    """Wait for a journey's end, and pass on what it said."""
    with journey:
        try:
            said, _ = journey.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(journey.pid, 9)
            said, _ = journey.communicate()
    assert journey.returncode == 0, said
    print(said)


@pytest.mark.parametrize("journey", ["song", "cover"])
def test_with_the_bundled_model(journey: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    driver()
    stack: Stack = request.getfixturevalue("stack")
    travel(journey, stack.url, tmp_path)


@pytest.mark.parametrize(
    "journey",
    ["resumed", "canceled", "closed", *(pytest.param(each, marks=pytest.mark.load) for each in LONGER)],
)
def test_with_keys(journey: str, closed: Closed, tmp_path: Path) -> None:
    travel(journey, closed.stack.url, tmp_path, closed.key(journey, rights=tuple(Right)), closed.key("other"))


def test_a_killed_worker(closed: Closed, tmp_path: Path) -> None:
    journey = begin("killed", closed.stack.url, tmp_path, closed.key("killed"), worker=closed.worker())
    while journey.poll() is None and not (tmp_path / "killed").exists():
        time.sleep(0.1)
    if journey.poll() is None:
        closed.replace_worker()
    arrive(journey)


@pytest.mark.load
def test_failures_are_explained(closed: Closed, tmp_path: Path) -> None:
    spent = closed.key("spent", Limits(gpu_seconds_per_day=0))
    travel("failures", closed.stack.url, tmp_path, closed.key("failures", Limits(queued_jobs=1)), spent)


@pytest.mark.load
def test_an_operator_sees_two_workers(closed: Closed, tmp_path: Path) -> None:
    stack = closed.stack
    first = stack.processes.pop("worker")
    stack.start("worker", {**SINES, "SERINETTE_WORK_DIR": str(tmp_path / "work")})
    try:
        operator = closed.key("ops", rights=tuple(Right))
        travel("operator", stack.url, tmp_path, closed.key("operator"), operator)
    finally:
        stack.stop("worker")
        stack.processes["worker"] = first
