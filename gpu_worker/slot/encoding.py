"""Encoding beside the engine: on threads of lower priority, bounded by the pod's number of encoders."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

from gpu_worker.wire import Samples
from serinette import telemetry
from serinette.media import encode, to_loudness
from serinette.spec import GenerationSpec

# The engine's own threads go first; of what they leave, encoders take their share. Below it are only idle priorities.
_NICENESS = 10
# Against a second of encoding, the wait for a place is looked at often enough.
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Encoded:
    """One song's file, what it could not be given, and what it took."""

    data: bytes
    warnings: tuple[str, ...]
    encode_s: float


class Encoders:
    """One attempt's songs, each encoded as soon as it is there. The slots of a pod share `most` places.

    The places are locks on files in `directory`, the pod's own: a slot that dies gives its places back. Without a
    directory a slot has all places to itself.
    """

    def __init__(self, directory: Path | None, most: int) -> None:
        self._directory = directory
        self._most = most
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="encoder", initializer=_give_way)

    def submit(
        self, samples: Samples, sample_rate: int, spec: GenerationSpec, tags: Mapping[str, str]
    ) -> Future[Encoded]:
        """Encode samples [channels, frames] as the spec asks, its loudness first. Raises what `encode` raises."""
        context = copy_context()  # whose trace this is part of
        return self._pool.submit(context.run, self._encode, samples, sample_rate, spec, tags)

    def close(self) -> None:
        """Begin no more; what is being encoded ends by itself, and is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, samples: Samples, sample_rate: int, spec: GenerationSpec, tags: Mapping[str, str]) -> Encoded:
        warnings: tuple[str, ...] = ()
        with place(self._directory, self._most), telemetry.span("encode", attributes={"format": spec.format}):
            began_s = time.monotonic()
            if spec.loudness_lufs is not None:
                samples, complaint = to_loudness(samples, sample_rate, spec.loudness_lufs)
                warnings = (complaint,) if complaint else ()
            data = encode(samples, sample_rate, spec.format, bitrate_kbps=spec.bitrate_kbps, tags=tags)
            return Encoded(data, warnings, time.monotonic() - began_s)


@contextmanager
def place(directory: Path | None, most: int) -> Iterator[None]:
    """One of the pod's places, once one is free."""
    if directory is None:
        yield
        return
    with ExitStack() as opened:
        files = [opened.enter_context((directory / f"encoder-{number}.lock").open("w")) for number in range(most)]
        while not any(map(_taken, files)):
            time.sleep(_LOOK_S)
        yield  # closing the files gives the place back


def _taken(file: object) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]  # an open file
        return True
    return False


def _give_way() -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))
