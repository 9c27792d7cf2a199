"""What the engine counts of its work and reads of its device, for the worker's `/metrics`."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gpu_worker.wire import Vitals
from serinette.job import Stage


class WorkCounters:
    """Counts what the model has done. The model's thread counts, sessions' threads read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy_s = 0.0
        self._audio_s = 0.0
        self._steps = 0
        self._first_song_s: float | None = None
        self._began_s: float | None = None
        self._last: tuple[Stage, int | None] | None = None

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Around each batch."""
        with self._lock:
            self._began_s, self._last = time.monotonic(), None
        try:
            yield
        finally:
            with self._lock:
                self._busy_s += time.monotonic() - (self._began_s or time.monotonic())
                self._began_s = None

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """Around what keeps the model waiting within a batch: it is not busy meanwhile."""
        with self._lock:
            self._busy_s += time.monotonic() - (self._began_s or time.monotonic())
            self._began_s = None
        try:
            yield
        finally:
            with self._lock:
                self._began_s = time.monotonic()

    def reached(self, stage: Stage, step: int | None, songs: int) -> None:
        """A batch of so many songs is there; the same place reported again, as a sign of life, counts once."""
        with self._lock:
            if stage is Stage.DENOISING and (stage, step) != self._last:
                self._steps += songs
            self._last = (stage, step)

    def generated(self, audio_s: float) -> None:
        """One song is done."""
        with self._lock:
            self._audio_s += audio_s
            if self._first_song_s is None and self._began_s is not None:
                self._first_song_s = time.monotonic() - self._began_s

    def vitals(self, device: str) -> Vitals:
        """All that was counted, the batch at hand included, and how the device is."""
        with self._lock:
            now_s = time.monotonic()
            busy_s = self._busy_s + (now_s - self._began_s if self._began_s is not None else 0.0)
            first_s = self._first_song_s
            counted = Vitals(busy_s=busy_s, audio_s=self._audio_s, steps=self._steps, first_song_s=first_s)
        return counted.model_copy(update=_gpu(device))


def _gpu(device: str) -> dict[str, int | float]:
    """Memory and utilization of an `Engine.device` that is a CUDA one; nothing where it is not, or does not say.

    torch is not imported here: an engine on a GPU has done so.
    """
    index = re.match(r"cuda:?(\d*)", device)
    torch = sys.modules.get("torch")
    if index is None or torch is None:
        return {}
    number = int(index[1] or 0)
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(number)
    except RuntimeError:  # the device is lost: the model's thread will raise it
        return {}
    found: dict[str, int | float] = {
        "gpu_memory_used_bytes": total_bytes - free_bytes,
        "gpu_memory_total_bytes": total_bytes,
    }
    # Asked of NVML by torch, if nvidia-ml-py is installed. A slice of a GPU (MIG) has no such number.
    with suppress(Exception):
        found["gpu_utilization"] = torch.cuda.utilization(number) / 100
    return found
