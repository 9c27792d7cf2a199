"""Fixtures every test may ask for: a Valkey of its own, and one SeaweedFS a session."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from redis import Redis
from xdist.scheduler.loadfile import LoadFileScheduling

from serinette.names import Keys
from tests import servers
from tests.jobs import Board
from tests.stack import Stack, running

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def pytest_configure() -> None:
    """What the process must have before the first test, whatever started it."""
    # A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start; tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # As engines are started (gpu_worker/process_setup.py). Without, threads that wait for each other spin on cores
    # that others use, and each buffer of a decoder is mapped anew: twice the time of test_engine_decoding.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


# Files that share what is made once a session: apart, they would start a stack each, and a fork server.
_TOGETHER = {
    "stack": re.compile(
        r"tests/(browser/test_studio|integration/test_(seed_client|planner|worker_one_model)|test_\w+)\.py"
    ),
    "kills": re.compile(r"tests/kills/"),
}


class _Together(LoadFileScheduling):  # type: ignore[misc]  # it ships no types
    """A file, or files that belong together, to one of the processes that test at once."""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for name, files in _TOGETHER.items() if files.match(nodeid)), super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadFileScheduling:
    """For `--dist loadfile`."""
    return _Together(config, log)


_SERVERS = ("valkey-server", "redis-server", "weed")
_left: list[str] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a test started is ended by it: a server that is still there fails the run, and is ended."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    servers = [each for each in psutil.Process().children(recursive=True) if _is_our_server(each, output)]
    for process in psutil.wait_procs(servers, timeout=10)[1]:  # one whose owner was killed ends a moment later
        with suppress(psutil.Error):
            _left.append(f"{' '.join(process.cmdline())[:200].strip()} in {process.cwd()}")
            process.kill()
    if output is not None:
        output["left"] = _left
    elif _left:
        print("\nstarted by tests, and left:", *_left, sep="\n  ", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _is_our_server(process: psutil.Process, output: object) -> bool:
    """Whether it is a server that this process's own tests started: those of other test processes are below those."""
    with suppress(psutil.Error):
        if process.name() in _SERVERS and process.status() != psutil.STATUS_ZOMBIE:
            return output is not None or not any("execnet" in " ".join(above.cmdline()) for above in process.parents())
    return False


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """What the tests of another process left."""
    output: dict[str, list[str]] = getattr(node, "workeroutput", {})
    _left.extend(output.get("left", []))


@pytest.fixture
def redis_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh Valkey that only this test uses; with the mark `shared_valkey` of its module's, emptied."""
    if request.node.get_closest_marker("shared_valkey"):
        url: str = request.getfixturevalue("valkey_url")
        with Redis.from_url(url) as client:
            client.flushdb()
        yield url
        return
    with servers.valkey(tmp_path / "valkey") as server:
        yield server.connection_url


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of that Valkey."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(scope="module")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of one Valkey for all tests of a module, where starting one for each would take most of the time."""
    with servers.valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server.connection_url


@pytest.fixture(scope="module")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of one directory store for all tests of a module."""
    return f"file://{tmp_path_factory.mktemp('store')}"


@pytest.fixture
def keys() -> Keys:
    """Names under RQ's default prefix."""
    return Keys()


@pytest.fixture
def board(redis: Redis, keys: Keys) -> Board:
    """The jobs on that Valkey."""
    return Board(redis, keys)


@pytest.fixture
def file_store_url(tmp_path: Path) -> str:
    """URL of an empty directory store."""
    directory = tmp_path / "store"
    directory.mkdir()
    return f"file://{directory}"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    """One SeaweedFS for the session; use a prefix of your own in its bucket."""
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small turbo checkpoint, for tests that read it alone."""
    from tests.tiny_checkpoint import build  # noqa: PLC0415  # it loads torch

    build(directory := tmp_path_factory.mktemp("checkpoint") / "my-turbo", turbo=True)
    return directory


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a base checkpoint, which takes guidance."""
    from tests.tiny_checkpoint import build  # noqa: PLC0415  # it loads torch

    build(directory := tmp_path_factory.mktemp("checkpoint") / "my-base", turbo=False)
    return directory


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A whole Serinette for the session, with the bundled checkpoint: leave it as it was."""
    with running(tmp_path_factory.mktemp("stack")) as started:
        yield started


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """The server for black-box tests: the one that SERINETTE_URL names, else the session's own stack."""
    if url := os.environ.get("SERINETTE_URL"):
        return url.rstrip("/")
    started: Stack = request.getfixturevalue("stack")
    return started.url
