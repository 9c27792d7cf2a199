"""What the gateway costs before its first request: import time, memory, and whether torch is in it."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.record import Figures, spread

RUNS = 7

# RSS as psutil reads it, after the import and once the application is built.
PROBE = """
import json, os, sys, time
import psutil
before = psutil.Process().memory_info().rss
began = time.perf_counter()
import api.app
took = time.perf_counter() - began
from api.settings import GatewaySettings
api.app.create_app(GatewaySettings())
print(json.dumps({
    "import_s": took,
    "bare_mib": before / 2**20,
    "ready_mib": psutil.Process().memory_info().rss / 2**20,
    "heavy": [name for name in ("torch", "diffusers", "transformers", "gpu_worker") if name in sys.modules],
}))
"""


def measure() -> Figures:
    """Figures of several fresh processes; the first warms the disk cache and does not count."""
    probes = []
    for _ in range(RUNS + 1):
        ended = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
        probes.append(json.loads(ended.stdout))
    counted = probes[1:]
    return {
        "import_s": spread([probe["import_s"] for probe in counted]),
        "memory_mib": spread([probe["ready_mib"] for probe in counted], 1),
        "bare_python_mib": spread([probe["bare_mib"] for probe in counted], 1),
        "heavy_modules": len({name for probe in probes for name in probe["heavy"]}),
    }
