"""A process that loads a checkpoint and generates what it is asked on stdin, a JSON line each: it answers the seconds.

Run as a file with a checkout in PYTHONPATH, so that it measures that checkout's engine: names are looked up, as they
changed (`sing` of 01f4adc is `generate_all`). `benchmarks/engine/turns.py` asks.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import time


def main(settings: str) -> None:
    """Settings as JSON; a line of stdin is `[duration_s, songs]`, an answer `[wall_s, cpu_s]` of all threads."""
    loading = importlib.import_module("gpu_worker.engine.loading")
    interface = "gpu_worker.engine.interface"
    if importlib.util.find_spec(interface) is None:
        interface = "gpu_worker.engine.base"
    request = importlib.import_module(interface).SongRequest
    spec = importlib.import_module("serinette.spec").GenerationSpec
    engine = loading.load(importlib.import_module("gpu_worker.settings").WorkerSettings.model_validate_json(settings))
    generate = getattr(engine, "generate_all", None) or engine.sing
    print(json.dumps(loading.__file__), flush=True)
    for line in sys.stdin:
        duration_s, songs = json.loads(line)
        batch = [request(spec(prompt="a slow ballad", duration_s=duration_s, seed=seed), seed) for seed in range(songs)]
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        if None in generate(batch, lambda *_: frozenset()):
            raise RuntimeError("a song is missing")
        print(json.dumps([time.perf_counter() - began_s, time.process_time() - began_cpu_s]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
