"""What `import serinette` costs, and what its first client then loads: fresh processes, taking turns."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.record import Figures, spread

RUNS = 15

# The wall time of the import statement alone, in a process that has loaded nothing else.
PROBE = """
import sys, time
began = time.perf_counter()
{statement}
took = time.perf_counter() - began
import json
heavy = ("httpx", "pydantic", "asyncio")
print(json.dumps({{"took_ms": 1000 * took, "heavy": [name for name in heavy if name in sys.modules]}}))
"""
STATEMENTS = {
    "import_serinette_ms": "import serinette",
    "import_client_ms": "from serinette import Client",
    "import_httpx_ms": "import httpx",
    "import_pydantic_ms": "from pydantic import BaseModel",
}


def measure() -> Figures:
    """Milliseconds of each statement; the first round warms the disk cache and does not count."""
    took: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    heavy: set[str] = set()
    for _ in range(RUNS + 1):
        for name, statement in STATEMENTS.items():
            probe = PROBE.format(statement=statement)
            ended = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
            reported = json.loads(ended.stdout)
            took[name].append(reported["took_ms"])
            if name == "import_serinette_ms":
                heavy |= set(reported["heavy"])
    counted = {name: values[1:] for name, values in took.items()}
    ratios = [
        ours / theirs for ours, theirs in zip(counted["import_serinette_ms"], counted["import_httpx_ms"], strict=True)
    ]
    return {
        **{name: spread(values, 3) for name, values in counted.items()},
        "serinette_to_httpx": spread(ratios),
        "heavy_modules": len(heavy),
    }
