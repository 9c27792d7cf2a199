"""The studio, as a person uses it: journeys.mjs drives Chromium at real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from serinette.credentials import Limits
from tests.stack import Stack, running
from tests.unit.tenants import key_of

pytestmark = pytest.mark.browser

HERE = Path(__file__).parent
# The second has no worker.
POOLS = '[{"name": "default", "model_name": "sine"}, {"name": "far", "model_name": "elsewhere"}]'


def driver() -> tuple[str, str]:
    """Node and Chromium, where what drives the one from the other is installed too."""
    node, chromium = shutil.which("node"), shutil.which("chromium") or shutil.which("google-chrome")
    if node is None or chromium is None or not (HERE / "node_modules").is_dir():
        pytest.skip("needs Chromium, and Node.js with `npm ci --prefix tests/browser`")
    return node, chromium


@dataclass(frozen=True, slots=True)
class Closed:
    """A gateway that asks for keys, before an engine of sines."""

    url: str
    redis_url: str

    def key(self, tenant: str, limits: Limits | None = None) -> str:
        with Redis.from_url(self.redis_url) as redis:
            return key_of(redis, tenant, limits)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    driver()
    settings = {"SERINETTE_AUTH": "true", "SERINETTE_POOLS": POOLS}
    with running(tmp_path_factory.mktemp("closed"), gateway=settings, parts=("gateway", "controller")) as stack:
        stack.start("worker", {"SERINETTE_ENGINE_MODULE": "tests.engines"})
        yield Closed(stack.url, stack.redis_url)


def travel(name: str, url: str, out: Path, key: str = "") -> str:
    """Go one journey; what it printed."""
    node, chromium = driver()
    environment = {**os.environ, "CHROMIUM": chromium, "GATEWAY": url, "KEY": key, "OUT": str(out)}
    command = [node, str(HERE / "journeys.mjs"), name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("journey", ["song", "cover"])
def test_with_the_bundled_model(journey: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    driver()
    stack: Stack = request.getfixturevalue("stack")
    travel(journey, stack.url, tmp_path)


@pytest.mark.parametrize("journey", ["resumed", "killed", "canceled", "closed", "accessible"])
def test_with_keys(journey: str, closed: Closed, tmp_path: Path) -> None:
    travel(journey, closed.url, tmp_path, closed.key(journey))


def test_failures_are_explained(closed: Closed, tmp_path: Path) -> None:
    travel("failures", closed.url, tmp_path, closed.key("failures", Limits(queued_jobs=1)))
