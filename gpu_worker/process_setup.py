"""What the processes of a worker pod start with and end with: run directory, the engine's environment, exit codes."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from serinette.errors import ConfigurationError
from serinette.job import WaitingCode
from serinette.own_directory import own_directory
from serinette.supervisor import LONGEST_SOCKET_PATH_BYTES

# sysexits.h: EX_CONFIG. Starting the process again cannot help; the log says what to change.
CONFIGURATION_EXIT_CODE = 78
# sysexits.h: EX_SOFTWARE. The device is lost to this process, or a job is stuck in it; a new process may do better.
CRASHED_EXIT_CODE = 70
# sysexits.h: EX_IOERR. A disk is full.
FULL_DISK_EXIT_CODE = 74
# What keeps a worker from taking jobs, by how it or a process of its own ended; `restart` for all others.
TROUBLES: Mapping[int | None, WaitingCode] = MappingProxyType(
    {
        CONFIGURATION_EXIT_CODE: WaitingCode.CONFIGURATION,
        FULL_DISK_EXIT_CODE: WaitingCode.DISK,
    }
)

# Libraries read these when the process starts, or never. What the operator sets himself goes before them.
# MALLOC_*: by default glibc maps and unmaps every buffer of the decoder: two to three times the time on a CPU.
# OMP_WAIT_POLICY: by default threads spin while they wait for each other: eight times the time on cores that slots use
# too. Measured on 2 cores; harmless beside CUDA.
ENGINE_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_THRESHOLD_": str(8 * 1024**3),
        "MALLOC_TRIM_THRESHOLD_": str(16 * 1024**3),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)

# What a slot starts with. By default glibc's thresholds follow the largest buffer (mallopt(3)), and of what a song's
# encoder freed it keeps up to 64 MiB in each memory arena: up to 8 for each core, of which each song's thread may get
# another one. A slot grew by 10 MiB for each. Fixed, it keeps 1 MiB, for 15 ms of the second that a song of 60 s takes.
SLOT_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {"MALLOC_MMAP_THRESHOLD_": str(1024**2), "MALLOC_TRIM_THRESHOLD_": str(1024**2)}
)

_PREFIX = "run-"
_SOCKET = "engine.sock"


def engine_environment(work_dir: Path) -> dict[str, str]:
    """What an engine with this work_dir is started with. What torch compiles is kept among the checkpoints, where pods
    mount the cache that they share: none compiles what another one has.
    """
    compiled = work_dir / "checkpoints" / "compiled"
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"), "TRITON_CACHE_DIR": str(compiled / "triton")}
    return unless_set({**ENGINE_ENVIRONMENT, **caches})


def unless_set(environment: Mapping[str, str]) -> dict[str, str]:
    """These variables, with the values that the operator gave some of them."""
    return {name: os.environ.get(name, value) for name, value in environment.items()}


def exit_code_of(error: BaseException) -> int:
    """The exit code of a process that this error ends, by the first of its causes that says one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            return FULL_DISK_EXIT_CODE
        cause = cause.__cause__
    return CONFIGURATION_EXIT_CODE if isinstance(error, ConfigurationError) else CRASHED_EXIT_CODE


@contextmanager
def private_run_dir(work_dir: Path) -> Iterator[Path]:
    """A fresh directory of one supervisor's own, erased on the way out: two on one machine must not share a socket.

    It lies in `work_dir`, or in the system's temporary directory if that path is too long for a socket.

    Raises:
        ConfigurationError: neither can be written to.
    """
    longest = len(os.fsencode(work_dir.absolute() / f"{_PREFIX}12345678" / _SOCKET))
    parent = work_dir.absolute() if longest <= LONGEST_SOCKET_PATH_BYTES else Path(tempfile.gettempdir()) / "serinette"
    with ExitStack() as held:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            directory = held.enter_context(own_directory(parent, _PREFIX))
        except OSError as error:
            raise ConfigurationError(
                f"work_dir: cannot write to {parent} ({error.strerror}); set SERINETTE_WORK_DIR to a writable directory"
            ) from error
        yield directory


def slot_file(run_dir: Path, slot: str, while_: Literal["up", "busy", "full"]) -> Path:
    """There while the slot of this name can claim jobs, holds one, or claims none because the songs that wait for the
    store are too many: the supervisor sees it without asking.
    """
    return run_dir / f"{slot}.{while_}"
