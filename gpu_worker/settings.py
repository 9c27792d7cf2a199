"""Settings of a worker pod: one class for supervisor, engine and slots, which inherit one environment."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from serinette.names import DEFAULT_POOL
from serinette.pools import PoolName
from serinette.settings import SharedSettings

MOST_SLOTS, MOST_ENCODERS = 64, 256


# What a pool of the chart requests: on a GPU two for the engine's threads and one for each 45 one-minute songs a minute
# as mp3, of the 640 that are aimed at.
GPU_CORES, CPU_CORES = 16, 1
GPU_BATCH, CPU_BATCH = 8, 1
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Sizing:
    """Songs that are generated together, songs encoded at a time, and jobs held at a time."""

    max_batch: int
    encoders: int
    slots: int


def sizing_for(*, gpu: bool, cores: int, max_batch: int = 0, encoders: int = 0, slots: int = 0) -> Sizing:
    """The rule for a worker with so many cores; what is given and not 0 stays.

    Slots: one batch is generated and one waits, while on each encoder there is a song, and for each four of them one
    on its way to the store. The first encoder's song is counted with the batch that waits: where there is but one, the
    engine is slower than it. `charts/serinette/templates/_names.tpl` has the same rule; docs/engine.md has its reasons.
    """
    max_batch = max_batch or (GPU_BATCH if gpu else CPU_BATCH)
    encoders = encoders or (min(MOST_ENCODERS, cores) if gpu else 1)
    return Sizing(max_batch, encoders, slots or min(MOST_SLOTS, 2 * max_batch + 5 * (encoders - 1) // 4))


def on_gpu(device: str) -> bool:
    """Whether the engine will be on one, before torch is there to say so; `auto`: if this machine shows one."""
    if device != "auto":
        return device.startswith("cuda")
    try:
        if version("torch").endswith("+cpu"):
            return False
    except PackageNotFoundError:
        return False
    return any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg")))


def usable_cores(cgroups: Path = _CGROUPS, own: str | None = None) -> int:
    """Cores of this process: its affinity's, or the whole ones of its containers' quota where that is less.

    `own`: its cgroup's path, as /proc has it (version 2). A quota of version 1 is only seen from within a container.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    place = cgroups / (_own_cgroup() if own is None else own).strip("/")
    quotas = [_quota(place / "cpu.max") for place in (place, *place.parents) if place.is_relative_to(cgroups)]
    quotas.append(_quota(cgroups / "cpu/cpu.cfs_quota_us", cgroups / "cpu/cpu.cfs_period_us"))
    return max(1, min(count, *(math.floor(quota) for quota in quotas)))


def _own_cgroup() -> str:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _quota(*files: Path) -> float:
    try:
        quota_us, period_us = " ".join(file.read_text() for file in files).split()
        return int(quota_us) / int(period_us) if int(quota_us) > 0 else sys.maxsize
    except (OSError, ValueError):  # none: `max`
        return sys.maxsize


class WorkerSettings(SharedSettings):
    """Read from the environment, once, in each process's `main()`."""

    pool: PoolName = Field(DEFAULT_POOL, description="Pool whose lanes to serve.")
    slots: int = Field(
        0,
        ge=0,
        le=MOST_SLOTS,
        description="Jobs held at a time: generated, waiting for it, encoded or uploaded. 0: twice `max_batch`, and "
        "five for each four encoders after the first.",
    )
    encoders: int = Field(
        0,
        ge=0,
        le=MOST_ENCODERS,
        description="Songs encoded at a time. 0: as many as there are cores (of the container's quota) beside a GPU; "
        "one where the engine itself works on the cores.",
    )
    drain_timeout_s: float = Field(3600, ge=0, description="On SIGTERM, how long running jobs may still finish.")
    own_services: str = Field(
        "",
        pattern=r"^([A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*)?$",
        description="Host names, with commas between, of the Services of Redis and store that an uninstall takes away "
        "with the workers.",
    )
    services_gone_s: float = Field(
        15,
        gt=0,
        description="A draining worker leaves at once when none of `own_services` has had an address for this long: "
        "its release is uninstalled.",
    )
    work_dir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / "serinette",
        description="For checkpoints, and each worker's run directory. When left out: `serinette` below the "
        "system's directory for temporary files.",
    )
    run_dir: Path | None = Field(
        None, description="Set by the supervisor: its own directory, for the engine's socket and spools."
    )
    store_patience_s: float = Field(
        300, ge=0, description="How long a generated song waits for a store that is away before its attempt fails."
    )

    spool_max_bytes: int = Field(
        2 * 1024**3,
        ge=0,
        description="Songs that a store which is away cannot take wait in `work_dir`; with so many bytes of them the "
        "pod takes no more jobs, and songs begun before may go beyond. 0: no spool, songs wait in memory.",
    )

    model: str = Field("bundled", description="A directory, hub id or object-store URL of a checkpoint, or `bundled`.")
    model_endpoint: str | None = Field(
        None, description="Endpoint of the S3-compatible store that holds `model`; that of the songs when left out."
    )
    model_credentials_dir: Path | None = Field(
        None,
        description="Directory of files that are the credentials for the store that holds `model`, each named as the "
        "variable (AWS_ACCESS_KEY_ID, ...) that it stands for; those of the songs' store when left out.",
    )
    model_name: str | None = Field(None, description="Name that jobs ask for; the end of `model` when left out.")
    planner_model: str | None = Field(
        None,
        description="A directory, hub id or object-store URL of a planner (a 5 Hz language model), `bundled`, or "
        "`none`. When left out: the planner that the checkpoint brings, if it does.",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on CUDA, float32 on a CPU."
    )
    cpu_offload: bool | None = Field(
        None, description="Keep parts that do not work in main memory; needs CUDA. None: only where nothing else fits."
    )
    compile: bool = Field(False, description="torch.compile transformer and decoder; loading takes minutes longer.")
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0 means all cores. Bits depend on it.")
    max_loras: int = Field(8, ge=1, le=64, description="Most LoRAs kept in memory; the one unused longest goes.")
    max_batch: int = Field(
        0, ge=0, le=64, description="Most songs generated together. 0: 8 on a GPU, 1 on a CPU, where more are slower."
    )

    tag_texts: bool = Field(
        True, description="Write prompt and lyrics into the tags of files; without them a song cannot be replayed."
    )
    engine_module: str = Field("gpu_worker.engine", description="Module that is run as the engine process.")
    engine_start_timeout_s: float = Field(1800, gt=0, description="Longest load of the model before a restart.")
    stall_timeout_s: float = Field(300, gt=0, description="Longest silence of a generating engine before it is killed.")
    cancel_timeout_s: float = Field(15, gt=0, description="Longest wait for a canceled or timed-out engine to stop.")

    @model_validator(mode="after")
    def _size(self) -> Self:
        # Frozen for everybody else: these three follow from others.
        given = {"max_batch": self.max_batch, "encoders": self.encoders, "slots": self.slots}
        self.__dict__.update(asdict(sizing_for(gpu=on_gpu(self.device), cores=usable_cores(), **given)))
        return self

    @property
    def engine_socket(self) -> Path:
        """Unix socket between slots and engine; below the 108 bytes that the kernel allows."""
        return (self.run_dir or self.work_dir) / "engine.sock"
