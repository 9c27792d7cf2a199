"""The engine process: slots connect to its socket, its main thread holds the model and sings for whoever waits."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gpu_worker.engine.base import Engine, EngineFactory
from gpu_worker.engine.batching import Room, plan
from gpu_worker.engine.session import Session, accept
from gpu_worker.engine.singing import Singing
from gpu_worker.engine.vitals import Work
from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE, CRASHED_EXIT_CODE
from gpu_worker.settings import WorkerSettings
from gpu_worker.wire import Failed, Hello, Stopped, Vitals
from serinette import logs
from serinette.errors import Canceled, ConfigurationError, EngineCrashed, EngineOutOfMemory, SerinetteError
from serinette.job import JobError, Stage

log = logging.getLogger(__name__)

Member = tuple[Singing, int]  # a job, and which of its variations


def run(settings: WorkerSettings, factory: EngineFactory) -> int:
    """Be the engine process. Listens before `factory` loads the model; ends only by a signal or an error.

    Answers an exit code: CONFIGURATION_EXIT_CODE when starting again cannot help, CRASHED_EXIT_CODE else.
    """
    logs.configure(settings, "engine")
    # The supervisor has drained the slots before it sends SIGTERM. A Ctrl-C in the terminal reaches every process of
    # the tree: what it means, the supervisor decides.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = EngineServer(settings)
        server.listen()
        server.open(factory())
        while True:
            server.sing_next()
    except ConfigurationError as error:
        log.error("%s", error)
        return CONFIGURATION_EXIT_CODE
    except SerinetteError as error:
        log.error("%s", error)
    except Exception:
        log.exception("the engine fails")
    # Without unwinding: a lost device can hang the interpreter's own end, and slots wait for their sockets to close.
    sys.stderr.flush()
    os._exit(CRASHED_EXIT_CODE)


class EngineServer:
    """Keeps the line of waiting jobs. Sessions add to it from their threads, `sing_next` takes from the main one."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._path = settings.engine_socket
        self._room = Room(settings.max_batch)
        self._engine: Engine | None = None
        self._changed = threading.Condition()
        self._line: list[Singing] = []
        self._sessions: set[Session] = set()
        self._work = Work()

    def listen(self) -> None:
        """Take connections from now on. Raises ConfigurationError when the socket cannot be bound."""
        welcome = partial(accept, bind(self._path), self._welcome)
        threading.Thread(target=welcome, name="accept", daemon=True).start()

    def open(self, engine: Engine) -> None:
        """The model is loaded: tell every slot."""
        with self._changed:
            self._engine = engine
            self._room = replace(self._room, audio_s=engine.audio_s)
            for session in self._sessions:
                session.send(self._hello())

    def sing_next(self) -> None:
        """Wait for jobs, and sing one batch of them.

        Raises:
            EngineCrashed: the device is lost.
        """
        if self._engine is None:
            raise RuntimeError("nothing can be generated before the model is loaded")
        line = [singing for singing in self._wait() if self._prepare(singing, self._engine)]
        members = [(singing, index) for singing in line for index in singing.remaining]
        places = plan([singing.kind for singing, _ in members], self._room)
        if places:
            batch = [members[place] for place in places]
            with logs.about(job=" ".join(dict.fromkeys(singing.job_id for singing, _ in batch))):
                self._sing(batch, self._engine)

    def _welcome(self, sock: socket.socket) -> None:
        session = Session(sock, self._add, self._forget, self._vitals)
        with self._changed:
            self._sessions.add(session)
            session.send(self._hello())
        session.start()

    def _hello(self) -> Hello:
        if self._engine is None:
            return Hello(pid=os.getpid(), stage="loading")
        return Hello(pid=os.getpid(), stage="ready", model=self._engine.model, device=self._engine.device)

    def _vitals(self) -> Vitals:
        return self._work.vitals(self._engine.device if self._engine else "")

    def _forget(self, session: Session) -> None:
        with self._changed:
            self._sessions.discard(session)

    def _add(self, singing: Singing) -> None:
        with self._changed:
            # Told at once: should the engine die, this job is known to be a bystander.
            if any(not other.answered for other in self._line):
                singing.tell_waiting()
            self._line.append(singing)
            self._changed.notify()

    def _wait(self) -> list[Singing]:
        with self._changed:
            while not self._unanswered():
                self._changed.wait()
            return list(self._line)

    def _unanswered(self) -> bool:
        for singing in self._line:
            if singing.canceled:
                singing.answer(Stopped())
        self._line = [singing for singing in self._line if not singing.answered]
        return bool(self._line)

    def _prepare(self, singing: Singing, engine: Engine) -> bool:
        with logs.about(job=singing.job_id):
            try:
                singing.prepare(engine)
            except Exception as error:
                singing.answer(_failed(singing.job_id, error))
                return False
        return True

    def _sing(self, batch: Sequence[Member], engine: Engine) -> None:
        jobs = len({singing.job_id for singing, _ in batch})
        batch = [(singing, index) for singing, index in batch if singing.begin(len(batch), jobs)]
        if not batch:
            return
        try:
            with self._work.singing():
                requests = [singing.request(index) for singing, index in batch]
                for place, song in engine.generate(requests, partial(self._observe, batch)):
                    self._work.sang(song.samples.shape[1] / song.sample_rate)
                    singing, index = batch[place]
                    singing.keep(index, song)
        except EngineCrashed:
            raise
        except Canceled:
            for singing, _ in batch:
                singing.answer(Stopped())
        except Exception as error:
            if len(batch) == 1:
                batch[0][0].answer(_failed(batch[0][0].job_id, error))
                return
            for part in self._parted(batch, error):
                self._sing([(singing, index) for singing, index in part if index in singing.remaining], engine)

    def _parted(self, batch: Sequence[Member], error: Exception) -> list[Sequence[Member]]:
        """A batch that failed, as it is tried again: by halves if it was too large, else one by one."""
        if isinstance(error, EngineOutOfMemory):
            longest_s = max(singing.kind.duration_s if singing.kind else 0.0 for singing, _ in batch)
            self._room = self._room.after_overflow(len(batch), longest_s)
            log.warning("a batch of %d did not fit, from now on %s: %s", len(batch), self._room, error)
            half = len(batch) // 2
            return [batch[:half], batch[half:]]
        log.warning("a batch of %d failed (%s): each song is generated alone", len(batch), error)
        return [[member] for member in batch]

    def _observe(self, batch: Sequence[Member], stage: Stage, step: int | None, _steps: int | None) -> frozenset[int]:
        self._work.reached(stage, step, len(batch))
        for singing, index in batch:
            if singing.canceled:
                singing.answer(Stopped())
            singing.tell(index, stage, step)
        sung_for = {id(singing) for singing, _ in batch}
        with self._changed:
            waiting = [singing for singing in self._line if id(singing) not in sung_for]
        for singing in waiting:
            singing.tell_waiting()
        return frozenset(place for place, (singing, _) in enumerate(batch) if singing.answered)


def bind(path: Path) -> socket.socket:
    """Listen on a Unix socket that only this user may open; one that a dead engine left is replaced.

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
    log.error("job %s: failed on a mistake of ours", job_id, exc_info=error)
    return Failed(error=JobError(code=SerinetteError.code, message=f"{type(error).__name__}: {error}"))
