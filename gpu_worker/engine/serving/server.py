"""The engine process: slots connect to its socket, its main thread holds the model and generates what they ask for.

Each slot's connection has a thread of its own that reads; any thread writes.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gpu_worker.engine.interface import Engine, Song
from gpu_worker.engine.serving.batching import Room, plan
from gpu_worker.engine.serving.counters import WorkCounters
from gpu_worker.engine.serving.generation import Generation
from gpu_worker.process_setup import CRASHED_EXIT_CODE, exit_code_of
from gpu_worker.settings import WorkerSettings
from gpu_worker.wire import AskVitals, Cancel, Connection, Failed, Generate, Hello, Message, Stopped, Vitals
from serinette import logs
from serinette.errors import (
    Canceled,
    ConfigurationError,
    EngineCrashed,
    EngineOutOfMemory,
    Interruption,
    RequestError,
    SerinetteError,
)
from serinette.job import JobError, Stage
from serinette.spec import GenerationSpec

log = logging.getLogger(__name__)

# A slot that reads nothing for so long is gone: the model must not wait for it.
_SEND_TIMEOUT_S = 10

Member = tuple[Generation, int]  # a job, and which of its variations


def run(settings: WorkerSettings, factory: Callable[[], Engine]) -> int:
    """Be the engine process. Listens before `factory` loads the model (a test's engine needs no torch); ends only by a
    signal or an error.

    Answers an exit code: that of a refused configuration, or of a full disk that is the reason for it. Else the process
    ends with CRASHED_EXIT_CODE.
    """
    logs.configure(settings, "engine")
    # The supervisor has drained the slots before it sends SIGTERM. A Ctrl-C in the terminal reaches every process of
    # the tree: what it means, the supervisor decides.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = EngineServer(settings)
        server.listen()
        began_s = time.monotonic()
        server.open(factory(), began_s)
        while True:
            server.generate_next()
    except ConfigurationError as error:
        log.error("%s", error)
        return exit_code_of(error)
    except SerinetteError as error:
        log.error("%s", error)
    except Exception:
        log.exception("the engine fails")
    # Without unwinding: a lost device can hang the interpreter's own end, and slots wait for their sockets to close.
    sys.stderr.flush()
    os._exit(CRASHED_EXIT_CODE)


class EngineServer:
    """Keeps the queue of waiting jobs. Sessions add to it from threads, `generate_next` takes from the main one."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._path = settings.engine_socket
        self._room = Room(settings.max_batch)
        self._engine: Engine | None = None
        self._changed = threading.Condition()
        self._queue: list[Generation] = []
        self._sessions: set[Session] = set()
        self._counters = WorkCounters()
        self._load_times: dict[str, float] = {}

    def listen(self) -> None:
        """Take connections from now on. Raises ConfigurationError when the socket cannot be bound."""
        threading.Thread(target=self._accept, args=(bind(self._path),), name="accept", daemon=True).start()

    def open(self, engine: Engine, began_s: float) -> None:
        """The model is loaded, which began at this monotonic time: say so to every slot."""
        load_s = max(0.0, time.monotonic() - began_s - sum(engine.load_times.values()))
        with self._changed:
            self._engine = engine
            self._load_times = {**engine.load_times, "load_s": load_s}
            self._room = replace(self._room, fits=engine.songs_together)
            for session in self._sessions:
                session.send(self._hello())

    def generate_next(self) -> None:
        """Wait for jobs, and generate one batch of them.

        Raises:
            EngineCrashed: the device is lost.
        """
        if self._engine is None:
            raise RuntimeError("nothing can be generated before the model is loaded")
        waiting = [job for job in self._wait() if self._prepare(job, self._engine)]
        members = [(job, index) for job in waiting for index in job.remaining]
        places = plan([job.kind for job, _ in members], self._room)
        if places:
            batch = [members[place] for place in places]
            with logs.about(job=" ".join(dict.fromkeys(job.job_id for job, _ in batch))):
                self._generate(batch, self._engine)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                session = Session(listener.accept()[0], self)
            except OSError as error:  # the slot left at once, or no descriptor is free at present
                log.warning("a slot's connection could not be taken: %s", error)
                time.sleep(0.1)
                continue
            with self._changed:
                self._sessions.add(session)
                session.send(self._hello())
            session.start()

    def _hello(self) -> Hello:
        if self._engine is None:
            return Hello(pid=os.getpid(), stage="loading")
        about = {"model": self._engine.model, "device": self._engine.device, "load_times": self._load_times}
        return Hello(pid=os.getpid(), stage="ready", **about)

    def vitals(self) -> Vitals:
        """What the engine has done, and how its device is."""
        return self._counters.vitals(self._engine.device if self._engine else "")

    def forget(self, session: Session) -> None:
        """A slot is gone."""
        with self._changed:
            self._sessions.discard(session)

    def add(self, job: Generation) -> None:
        """A slot asks for a job."""
        with self._changed:
            # Reported at once: should the engine die, this job is known to be a bystander.
            if any(not other.answered for other in self._queue):
                job.report_waiting()
            self._queue.append(job)
            self._changed.notify()

    def _wait(self) -> list[Generation]:
        with self._changed:
            while True:
                for job in self._queue:
                    if job.canceled:
                        job.answer(Stopped())
                self._queue = [job for job in self._queue if not job.answered]
                if self._queue:
                    return list(self._queue)
                self._changed.wait()

    def _prepare(self, job: Generation, engine: Engine) -> bool:
        with logs.about(job=job.job_id):
            try:
                job.prepare(engine)
            except Exception as error:
                job.answer(_failed(job.job_id, error))
                return False
        return True

    def _generate(self, batch: Sequence[Member], engine: Engine) -> None:
        jobs = len({job.job_id for job, _ in batch})
        batch = [(job, index) for job, index in batch if job.begin(len(batch), jobs)]
        if not batch:
            return
        try:
            with self._counters.generating():
                requests = [job.request(index) for job, index in batch]
                for place, made in engine.generate(requests, partial(self._observe, batch)):
                    if isinstance(made, Song):
                        self._counters.generated(made.samples.shape[1] / made.sample_rate)
                    job, index = batch[place]
                    with self._counters.handing_over():
                        job.hand_over(index, made)
        except EngineCrashed:
            raise
        except Canceled:
            for job, _ in batch:
                job.answer(Stopped())
        except Exception as error:
            if len(batch) == 1:
                batch[0][0].answer(_failed(batch[0][0].job_id, error))
                return
            for part in self._parted(batch, error):
                self._generate([(job, index) for job, index in part if index in job.remaining], engine)

    def _parted(self, batch: Sequence[Member], error: Exception) -> list[Sequence[Member]]:
        """A batch that failed, as it is tried again: by halves if it was too large, else one by one."""
        if isinstance(error, EngineOutOfMemory):
            longest_s = max(job.kind.duration_s if job.kind else 0.0 for job, _ in batch)
            self._room = self._room.after_overflow(len(batch), longest_s)
            log.warning("a batch of %d did not fit, from now on %s: %s", len(batch), self._room, error)
            half = len(batch) // 2
            return [batch[:half], batch[half:]]
        log.warning("a batch of %d failed (%s): each song is generated alone", len(batch), error)
        return [[member] for member in batch]

    def _observe(self, batch: Sequence[Member], stage: Stage, step: int | None, steps: int | None) -> frozenset[int]:
        self._counters.reached(stage, step, len(batch))
        for job, index in batch:
            if job.canceled:
                job.answer(Stopped())
            job.report(index, stage, step, steps)
        at_work = {id(job) for job, _ in batch}
        with self._changed:
            waiting = [job for job in self._queue if id(job) not in at_work]
        for job in waiting:
            job.report_waiting()
        return frozenset(place for place, (job, _) in enumerate(batch) if job.answered)


class Session(threading.Thread):
    """Reads one slot's requests and queues its jobs; a slot that goes away gives up its job."""

    def __init__(self, sock: socket.socket, server: EngineServer) -> None:
        super().__init__(name="session", daemon=True)
        # The kernel's timeout, as the socket's own would bound the reading too.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        self._connection = Connection(sock)
        self._server = server
        self._writing = threading.Lock()
        self._open = True
        self._generation: Generation | None = None

    def run(self) -> None:
        """Read until the slot goes away or sends what it may not."""
        try:
            while True:
                self._handle(self._connection.receive(None))
        except (OSError, ValueError) as error:
            log.debug("a slot is gone: %s", error)
        finally:
            if self._generation is not None:
                self._generation.cancel()
            with self._writing:
                self._open = False
                self._connection.close()
            self._server.forget(self)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send to the slot; nothing happens when it is gone, as its own thread ends then."""
        with self._writing:
            if not self._open:
                return
            try:
                self._connection.send(message, list(descriptors))
            except OSError as error:
                log.warning("a slot does not take its messages and is given up: %s", error)
                self._connection.hang_up()

    def _handle(self, message: Message | None) -> None:
        if isinstance(message, Cancel):
            if self._generation is not None:
                self._generation.cancel()
        elif isinstance(message, AskVitals):
            self.send(self._server.vitals())
        elif isinstance(message, Generate):
            if self._generation is not None and not self._generation.answered:
                raise ConnectionError("a slot asked for a second song before it had its first")
            audio = {str(part.role): self._connection.take_samples(part) for part in message.audio}
            try:
                spec = GenerationSpec.from_wire(message.spec)
            except (RequestError, Interruption) as error:
                self.send(_failed(message.job_id, error))
                return
            self._generation = Generation(message.job_id, spec, audio, self.send, alone=message.alone)
            self._server.add(self._generation)
        else:
            raise ConnectionError(f"a slot sent {message!r:.80}, which only an engine sends")


def bind(path: Path) -> socket.socket:
    """Listen on a Unix socket that only this user may open; a socket that a dead engine left is replaced.

    Raises:
        ConfigurationError: the path cannot be bound, or another engine listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise ConfigurationError(f"{path}: another engine listens here; set another SERINETTE_WORK_DIR")
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"{path}: cannot listen here: {error}; set another SERINETTE_WORK_DIR") from error
    return listener


def _failed(job_id: str, error: Exception) -> Failed:
    if isinstance(error, SerinetteError):
        log.warning("job %s: %s: %s", job_id, error.code, error.message)
        return Failed(error=JobError(code=error.code, message=error.message, retryable=error.retryable))
    log.error("job %s: failed on an internal error", job_id, exc_info=error)
    return Failed(error=JobError(code=SerinetteError.code, message=f"{type(error).__name__}: {error}"))
