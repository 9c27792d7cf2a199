"""What the engine's process must be started with, told to the supervisor without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

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


def engine_environment(work_dir: Path) -> dict[str, str]:
    """What an engine with this work_dir is started with. What torch compiles lies among the checkpoints, where pods
    mount the cache that they share: none compiles what another one has.
    """
    compiled = work_dir / "checkpoints" / "compiled"
    return {
        **ENGINE_ENVIRONMENT,
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
    }
