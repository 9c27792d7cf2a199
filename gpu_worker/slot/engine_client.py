"""A slot's end of the engine's socket: it asks for songs and kills an engine that hangs; the supervisor restarts it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpu_worker.slot.hold import Hold
from gpu_worker.slot.tell import Tell
from gpu_worker.wire import (
    Audio,
    Cancel,
    Connection,
    Decoded,
    Failed,
    Generate,
    Generated,
    Hello,
    Message,
    Report,
    Samples,
    Stopped,
    share_samples,
)
from serinette.errors import EngineCrashed, EngineStalled, HandBack, Interruption, JobTimeout, of_code
from serinette.job import Stage
from serinette.presence import Model

log = logging.getLogger(__name__)

# A cancel, a deadline or a drain is noticed within this.
_POLL_S = 0.2
_LOOK_S = 0.001
_CONNECT_TIMEOUT_S = 2.0
_SEND_TIMEOUT_S = 10.0
# Whoever waits for others' songs lets the one whose song hangs find out first, and say why. The engine tells those who
# wait that it lives every 5 s.
_WAITING_STALL_FACTOR = 1.25
_SHORTEST_WAITING_STALL_S = 15.0


# Takes each song as it is decoded: which variation it is, what it is, its samples [channels, frames].
Keep = Callable[[int, Audio, Samples], None]

# An engine that dies before it says a word on a song dies of another's. So often in a row, it dies of this one.
_UNHEARD_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Lost:
    """The engine was gone, and this song cannot be said to be the cause: it was not sung yet, or not alone."""

    unheard: bool = False
    in_company: bool = False


class EngineClient:
    """One connection, one song at a time. Not for several threads."""

    def __init__(self, socket_path: Path, stall_timeout_s: float, cancel_timeout_s: float) -> None:
        self._socket_path = socket_path
        self._stall_timeout_s = stall_timeout_s
        self._cancel_timeout_s = cancel_timeout_s
        self._connection: Connection | None = None
        self._hello: Hello | None = None

    @property
    def model(self) -> Model | None:
        """What the engine has loaded; None until it is ready."""
        return self._hello.model if self._hello and self._hello.stage == "ready" else None

    def ready(self, wait_s: float = 0.0) -> bool:
        """Whether a song can be asked for; waits up to `wait_s` for the engine to say so."""
        try:
            if self._connection is None:
                self._connection = Connection.connect(self._socket_path, _CONNECT_TIMEOUT_S)
            while message := self._connection.receive(_LOOK_S if self.model else max(_LOOK_S, wait_s)):
                if isinstance(message, Hello):
                    self._hello = message
        except OSError:  # not there, or gone: ConnectionError is one too
            self.close()
            time.sleep(wait_s)
        return self.model is not None

    def wait_ready(self, hold: Hold, tell: Tell) -> Model:
        """Wait for a loaded model, on nobody's time.

        Raises:
            HandBack: this worker drains; another one has an engine.
        """
        asked_at_s = time.monotonic()
        while not self.ready(_POLL_S):
            tell(Stage.WAITING_FOR_ENGINE)
            hold.not_counted(time.monotonic() - asked_at_s)
            asked_at_s = time.monotonic()
            hold.check()
            if hold.drain.requested:
                raise HandBack("the worker leaves while its engine is not ready, and gives the job back")
        if self.model is None:
            raise EngineCrashed("the engine is ready without a model")
        return self.model

    def sing(self, request: Generate, audio: Sequence[Samples], hold: Hold, tell: Tell, keep: Keep) -> Generated:
        """All variations of a job, each given to `keep` as it comes; of one that comes twice the last counts.

        An engine that is lost while it sings several jobs is lost to one of them: each is asked for again, alone, and
        only the one that ends the engine once more is charged for it.

        Raises:
            EngineCrashed: the engine ended during this song, sung alone.
            EngineStalled: it said nothing for the stall timeout, and was killed; likewise.
            SerinetteError: what the engine says of the song (Unsupported, EngineOutOfMemory, ...).
            Interruption, JobTimeout: as `Hold.check`; the engine has stopped, or was killed.
        """
        unheard = 0
        while True:
            self.wait_ready(hold, tell)
            answer = self._ask(request, audio, hold, tell, keep)
            if isinstance(answer, Generated):
                return answer
            unheard = unheard + 1 if answer.unheard else 0
            if unheard == _UNHEARD_TRIES:
                raise EngineCrashed("the engine ended whenever it was asked for this song")
            if answer.in_company:
                request = request.model_copy(update={"alone": True})
            whose = "one of several songs, this among them" if answer.in_company else "another song"
            log.info("job %s: the engine was lost to %s; waiting for the next one", hold.job_id, whose)

    def close(self) -> None:
        """Hang up, which cancels whatever was asked."""
        if self._connection:
            self._connection.close()
        self._connection = self._hello = None

    def _open(self) -> Connection:
        if self._connection is None:
            raise ConnectionError("there is no connection to the engine")
        return self._connection

    def _ask(
        self, request: Generate, audio: Sequence[Samples], hold: Hold, tell: Tell, keep: Keep
    ) -> Generated | _Lost:
        answer: Message | None = None
        stage: Stage | None = None
        jobs = 1
        try:
            self._send(request, audio)
            heard_at_s = time.monotonic()
            while not isinstance(answer, Generated | Failed | Stopped):
                if isinstance(answer, Report):
                    stage, jobs = answer.stage, answer.jobs
                    tell(answer.stage, answer.step, answer.steps)
                elif isinstance(answer, Decoded):
                    keep(answer.index, answer.song, self._open().take_samples(answer.song))
                hold.check()
                asked_at_s = time.monotonic()
                answer = self._open().receive(_POLL_S)
                if answer:
                    heard_at_s = time.monotonic()
                self._end_if_silent(time.monotonic() - heard_at_s, stage)
                if stage is Stage.WAITING_FOR_ENGINE:
                    hold.not_counted(time.monotonic() - asked_at_s)
        except HandBack:
            self.close()  # the whole worker leaves: nobody needs the engine to stop first
            raise
        except (Interruption, JobTimeout):
            self._stop()
            raise
        except (EngineStalled, OSError) as error:
            self.close()
            if stage is None or stage is Stage.WAITING_FOR_ENGINE:
                return _Lost(unheard=stage is None)
            if jobs > 1:
                return _Lost(in_company=True)
            if isinstance(error, EngineStalled):
                raise
            raise EngineCrashed("the engine ended while it generated this song") from error
        return self._answered(answer)

    def _send(self, request: Generate, audio: Sequence[Samples]) -> None:
        descriptors: list[int] = []
        try:
            descriptors += [share_samples(samples) for samples in audio]
            self._open().send(request, descriptors, _SEND_TIMEOUT_S)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _answered(self, answer: Message | None) -> Generated:
        if isinstance(answer, Generated):
            return answer
        if isinstance(answer, Failed):
            raise of_code(answer.error.code, answer.error.message)
        raise EngineCrashed("the engine stopped a song that was not canceled")

    def _end_if_silent(self, silent_s: float, stage: Stage | None) -> None:
        longest_s = self._stall_timeout_s
        if stage is Stage.WAITING_FOR_ENGINE:
            longest_s = max(_SHORTEST_WAITING_STALL_S, longest_s * _WAITING_STALL_FACTOR)
        if silent_s > longest_s:
            self._kill(f"it said nothing for {silent_s:.0f} s")
            raise EngineStalled(f"the engine showed no progress for {silent_s:.0f} s and was killed")

    def _stop(self) -> None:
        """Have the engine stop this song, or kill it; the next song begins on a fresh connection either way."""
        until_s = time.monotonic() + self._cancel_timeout_s
        try:
            self._open().send(Cancel(), timeout_s=_SEND_TIMEOUT_S)
            while not isinstance(
                self._open().receive(max(0.001, until_s - time.monotonic())), Generated | Failed | Stopped
            ):
                if time.monotonic() >= until_s:
                    self._kill(f"it did not stop a song within {self._cancel_timeout_s:g} s")
                    break
        except OSError:  # gone, and the song with it
            pass
        self.close()

    def _kill(self, why: str) -> None:
        if self._hello:
            log.warning("killing the engine, process %d: %s", self._hello.pid, why)
            with suppress(ProcessLookupError):
                os.kill(self._hello.pid, signal.SIGKILL)
