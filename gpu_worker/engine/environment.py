"""What the engine's process must be started with, told to the supervisor without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# glibc reads these at exec only. By default it maps and unmaps every buffer of the decoder: 225,000 page faults for
# 15 s of music, and two to three times the time on a CPU. Values as measured; harmless beside CUDA.
ENGINE_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "MALLOC_MMAP_THRESHOLD_": str(8 * 1024**3),
        "MALLOC_TRIM_THRESHOLD_": str(16 * 1024**3),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)

# sysexits.h: EX_CONFIG. Starting the engine again cannot help; the log says what to change.
CONFIGURATION_EXIT_CODE = 78
# sysexits.h: EX_SOFTWARE. The device is lost to this process; a new one may have it.
CRASHED_EXIT_CODE = 70
