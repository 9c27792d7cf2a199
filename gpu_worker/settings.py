"""Settings of a worker pod: one class for supervisor, engine and slots, which inherit one environment."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from serinette.names import DEFAULT_POOL
from serinette.pools import PoolName
from serinette.settings import SharedSettings

MOST_SLOTS = 64


def slots_for(max_batch: int, encoders: int) -> int:
    """Slots that keep an engine busy: one batch is generated and one waits, while on each encoder there is a song, and
    for each four of them one on its way to the store.

    The first encoder's song is counted with the batch that waits: where there is but one, the engine is slower than it.
    `charts/serinette/templates/_names.tpl` has the same rule; docs/engine.md has its reasons.
    """
    return min(MOST_SLOTS, 2 * max_batch + 5 * (encoders - 1) // 4)


def encoders_for(device: str) -> int:
    """Songs that may be encoded at a time beside an engine on this device, `auto` for an unknown one."""
    gpu = device.startswith("cuda") or (device == "auto" and any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))))
    return len(os.sched_getaffinity(0)) if gpu and hasattr(os, "sched_getaffinity") else 1


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
        le=256,
        description="Songs encoded at a time. 0: as many as there are cores beside a GPU; one where the engine itself "
        "works on the cores.",
    )
    drain_timeout_s: float = Field(3600, ge=0, description="On SIGTERM, how long running jobs may still finish.")
    services_gone_s: float = Field(
        15,
        gt=0,
        description="A draining worker whose Redis and store have both had no address, by name, for this long leaves "
        "at once: their release is uninstalled.",
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
    model_name: str | None = Field(None, description="Name that jobs ask for; the end of `model` when left out.")
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
    max_batch: int = Field(1, ge=1, le=64, description="Most songs generated together.")

    tag_texts: bool = Field(
        True, description="Write prompt and lyrics into the tags of files; without them a song cannot be replayed."
    )
    engine_module: str = Field("gpu_worker.engine", description="Module that is run as the engine process.")
    engine_start_timeout_s: float = Field(1800, gt=0, description="Longest load of the model before a restart.")
    stall_timeout_s: float = Field(300, gt=0, description="Longest silence of a generating engine before it is killed.")
    cancel_timeout_s: float = Field(15, gt=0, description="Longest wait for a canceled or timed-out engine to stop.")

    @model_validator(mode="after")
    def _size(self) -> Self:
        # Frozen for everybody else: these two follow from others.
        self.__dict__["encoders"] = self.encoders or encoders_for(self.device)
        self.__dict__["slots"] = self.slots or slots_for(self.max_batch, self.encoders)
        return self

    @property
    def engine_socket(self) -> Path:
        """Unix socket between slots and engine; below the 108 bytes that the kernel allows."""
        return (self.run_dir or self.work_dir) / "engine.sock"
