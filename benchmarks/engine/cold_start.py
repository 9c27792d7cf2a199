"""From a process's start to its first song, each of them in a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

from benchmarks.engine.cases import Case
from benchmarks.record import Figures
from gpu_worker.process_setup import engine_environment


def measure(case: Case) -> Figures:
    """Eager, compiled with nothing kept, and compiled by a process that finds what another one left."""
    figures: Figures = {"device": case.device_name, "eager": _split(case, compile=False, kept=True)}
    if case.compile:
        figures["compiled_first"] = _split(case, compile=True, kept=False)
        figures["compiled_again"] = _split(case, compile=True, kept=True)
    return figures


def _split(case: Case, *, compile: bool, kept: bool) -> Figures:
    if not kept:
        shutil.rmtree(case.directory / "checkpoints" / "compiled", ignore_errors=True)
    settings = case.settings(compile=compile).model_dump_json(include={"model", "device", "compile", "work_dir"})
    command = [sys.executable, "-m", "benchmarks.engine.fresh", settings, str(case.first_song_s)]
    began_s = time.perf_counter()
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **engine_environment(case.directory)}
    )
    split: Figures = json.loads(answer.stdout.splitlines()[-1])
    split["whole_process_s"] = round(time.perf_counter() - began_s, 2)
    print("   ", split, flush=True)
    return split
