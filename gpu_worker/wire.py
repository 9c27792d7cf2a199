"""The local socket between slots and engine: one connection a slot, one job at a time on it.

Each message is one line of JSON. Samples never travel in it: they are in an unlinked file whose descriptor comes along
(SCM_RIGHTS), float32 little-endian, channel after channel, so that a crash on either side leaves nothing behind.

    engine -> slot   Hello at connect and whenever its stage changes
    slot -> engine   Generate (+ a descriptor for each of `audio`), Cancel; closing the connection is a cancel too
    engine -> slot   (Report | Decoded + a descriptor)*, then Generated | Failed | Stopped

    supervisor -> engine   AskVitals, answered by Vitals

A Generate may come while the model still loads; it waits. Reports with the stage `waiting_for_engine` say that other
jobs are being generated: they come as long as the model moves, so that silence always means an engine that hangs.
Step counts are of the job, over all its variations.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter

from serinette.job import JobError, Sampling, Stage
from serinette.presence import Model
from serinette.spec import Planned, RecordModel

Samples = npt.NDArray[np.float32]  # [channels, frames], -1 to 1

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_DESCRIPTORS = 16
# A busy engine is not waited for: what it says is taken in the next time.
_LISTEN_S = 0.001
_CONNECT_TIMEOUT_S = 0.5


class Hello(RecordModel):
    """Where the engine stands. By `pid` a slot kills it when it hangs."""

    type: Literal["hello"] = "hello"
    pid: int
    stage: Literal["loading", "ready"]
    model: Model | None = None
    device: str = ""
    load_times: dict[str, float] = Field(default_factory=dict)  # fields of ColdStart (serinette/presence.py)


class Audio(RecordModel):
    """Samples in a descriptor that comes with the message, in the order of its list."""

    role: Literal["source", "reference", "song"]
    channels: int
    frames: int
    seed: int | None = None
    plan: Planned | None = None
    audio_codes: str | None = None  # of the plan


class Generate(RecordModel):
    """Ask for all variations of one job; `alone`: in a batch of its own, as it may crash the engine."""

    type: Literal["generate"] = "generate"
    job_id: str
    spec: dict[str, Any]
    alone: bool = False
    audio: tuple[Audio, ...] = ()


class Cancel(RecordModel):
    """The song is no longer wanted; answered by Stopped within a step."""

    type: Literal["cancel"] = "cancel"


class Report(RecordModel):
    """Progress. `jobs`: how many are generated together; if the engine dies now, any of them may be the cause."""

    type: Literal["report"] = "report"
    stage: Stage
    step: int | None = None
    steps: int | None = None
    jobs: int = 1


class Decoded(RecordModel):
    """One variation is done, and its samples come along; others may still be generated."""

    type: Literal["decoded"] = "decoded"
    index: int
    song: Audio


class Generated(RecordModel):
    """Done: `songs` came before, each with its Decoded; `texts` are those of a job without songs."""

    type: Literal["generated"] = "generated"
    songs: tuple[Audio, ...]
    texts: tuple[Planned, ...] = ()
    sample_rate: int
    sampling: Sampling
    model: Model
    generate_s: float
    batch_size: int = 1
    warnings: tuple[str, ...] = ()


class Failed(RecordModel):
    """The song failed; the engine goes on."""

    type: Literal["failed"] = "failed"
    error: JobError


class Stopped(RecordModel):
    """Canceled, as asked."""

    type: Literal["stopped"] = "stopped"


class AskVitals(RecordModel):
    """Asked by the supervisor, on a connection of its own; answered by Vitals."""

    type: Literal["ask_vitals"] = "ask_vitals"


class Vitals(RecordModel):
    """What this engine process has done since its start, and how its device is; null where that does not say."""

    type: Literal["vitals"] = "vitals"
    busy_s: float = 0.0
    audio_s: float = 0.0
    steps: int = 0
    gpu_memory_used_bytes: int | None = None
    gpu_memory_total_bytes: int | None = None
    gpu_utilization: float | None = None
    first_song_s: float | None = None


Message = Annotated[
    Hello | Generate | Cancel | Report | Decoded | Generated | Failed | Stopped | AskVitals | Vitals,
    Field(discriminator="type"),
]
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


class Connection:
    """One end of the socket. Not for several threads at once in the same direction.

    Raises:
        ConnectionError: the other side is gone, or broke the protocol.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""
        self._descriptors: list[int] = []

    @classmethod
    def connect(cls, path: Path, timeout_s: float) -> Connection:
        """Connect to the engine's socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return cls(sock)

    def close(self) -> None:
        """Close the socket and the descriptors that were not taken."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        self._socket.close()

    def hang_up(self) -> None:
        """Shut the connection down from any thread: `receive` in another one raises ConnectionError."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def send(self, message: Message, descriptors: list[int] | None = None, timeout_s: float | None = None) -> None:
        """Send one message; the descriptors stay the caller's to close. Without `timeout_s` the last one holds."""
        if timeout_s is not None:
            self._socket.settimeout(timeout_s)
        line = message.model_dump_json(exclude_none=True).encode() + b"\n"
        if descriptors:
            sent = socket.send_fds(self._socket, [line], descriptors)
            line = line[sent:]
        self._socket.sendall(line)

    def receive(self, timeout_s: float | None) -> Message | None:
        """The next message, or None when `timeout_s` passes without one."""
        self._socket.settimeout(timeout_s)
        while b"\n" not in self._buffer:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, 65_536, MAX_DESCRIPTORS)
            except TimeoutError:
                return None
            self._descriptors += descriptors
            if not data:
                raise ConnectionError("the other side of the engine's socket is gone")
            self._buffer += data
            if len(self._buffer) > MAX_MESSAGE_BYTES:
                raise ConnectionError(f"a message longer than {MAX_MESSAGE_BYTES} bytes came over the engine's socket")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return _MESSAGE.validate_json(line)

    def take_samples(self, audio: Audio) -> Samples:
        """Read the samples of the next descriptor that came, and close it."""
        if not self._descriptors:
            raise ConnectionError("a message named samples, but no descriptor came with it")
        descriptor = self._descriptors.pop(0)
        try:
            size_bytes = audio.channels * audio.frames * 4
            if size_bytes == 0 or os.fstat(descriptor).st_size < size_bytes:
                raise ConnectionError(f"the descriptor holds less than the {size_bytes} bytes that were announced")
            with mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_READ) as view:
                flat = np.frombuffer(view, dtype="<f4").copy()
        finally:
            os.close(descriptor)
        return flat.reshape(audio.channels, audio.frames)


class EngineLink:
    """A client's connection to the engine, made anew once it is lost. Not for several threads.

    `hello` and `vitals`: the engine's last report of itself and, of those who ask, of its work; None while there is no
    engine, or no report yet.
    """

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._connection: Connection | None = None
        self.hello: Hello | None = None
        self.vitals: Vitals | None = None

    def listen(self, wait_s: float = _LISTEN_S) -> None:
        """Read the engine's messages, waiting up to `wait_s` for it to begin; without an engine, that long too."""
        until_s = time.monotonic() + wait_s
        try:
            if self._connection is None:
                self._connection = Connection.connect(self._socket_path, _CONNECT_TIMEOUT_S)
            while message := self._connection.receive(wait_s):
                if isinstance(message, Hello):
                    self.hello = message
                elif isinstance(message, Vitals):
                    self.vitals = message
                wait_s = _LISTEN_S
        except OSError:  # not there yet, or gone: ConnectionError is one too
            self.close()
            time.sleep(max(0.0, until_s - time.monotonic()))

    @property
    def connection(self) -> Connection:
        """Raises ConnectionError while there is none."""
        if self._connection is None:
            raise ConnectionError("there is no connection to the engine")
        return self._connection

    def close(self) -> None:
        """Close the connection, which cancels the running request."""
        if self._connection:
            self._connection.close()
        self._connection = self.hello = self.vitals = None


def share_samples(samples: Samples) -> int:
    """Put samples [channels, frames] into an unnamed file in memory; answers its descriptor, the caller's to close."""
    if sys.platform == "linux":  # not a file in /dev/shm: a container's holds 64 MiB, a song of 10 minutes 220
        descriptor = os.memfd_create("serinette-samples")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(np.ascontiguousarray(samples, dtype="<f4").data)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
