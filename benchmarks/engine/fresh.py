"""A fresh process that loads a model and generates twice: it prints, as JSON, what each part took."""

from __future__ import annotations

import itertools
import json
import sys
import time

import psutil

from benchmarks.engine.speed import Clock, spec_of, synchronize
from gpu_worker.engine.interface import SongRequest
from gpu_worker.engine.loading import load
from gpu_worker.settings import WorkerSettings


def main(given: str, song_s: float) -> None:
    """Load what these settings (JSON) name. Compiling is part of loading: no job waits for it."""
    marks = [("", psutil.Process().create_time()), ("import_s", time.time())]
    engine = load(WorkerSettings.model_validate_json(given))
    synchronize()
    marks.append(("load_s", time.time()))
    for what in ("first_song_s", "second_song_s"):
        list(engine.generate([SongRequest(spec_of(0, song_s), 0)], Clock()))
        synchronize()
        marks.append((what, time.time()))
    print(json.dumps({what: round(at - before, 2) for (_, before), (what, at) in itertools.pairwise(marks)}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
