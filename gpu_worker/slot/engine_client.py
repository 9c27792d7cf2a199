"""A slot's end of the engine's socket: it asks for songs and kills an engine that hangs; the supervisor restarts it."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from gpu_worker.slot.held_job import HeldJob
from gpu_worker.wire import (
    Audio,
    Cancel,
    Decoded,
    EngineLink,
    Failed,
    Generate,
    Generated,
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
_SEND_TIMEOUT_S = 10.0
# A slot that waits for other jobs lets the slot whose job hangs find out first, and say why. The engine reports to
# those that wait every 5 s.
_WAITING_STALL_FACTOR = 1.25
_SHORTEST_WAITING_STALL_S = 15.0


# Takes each song as it is decoded: which variation it is, what it is, its samples [channels, frames].
Keep = Callable[[int, Audio, Samples], None]

# An engine that dies before it says a word on a song dies of another's. So often in a row, it dies of this one.
_UNHEARD_TRIES = 3


# The engine was gone, and this song need not be the cause: it was not heard of, not begun, or not alone.
_Lost = Literal["unheard", "waiting", "in company"]


def _lost(error: EngineStalled | OSError, stage: Stage | None, jobs: int) -> _Lost:
    """What the loss of the engine means for a song that was last heard of in `stage`, with `jobs` in its batch.

    Raises:
        EngineCrashed, EngineStalled: it was generated alone, so the engine was lost to it.
    """
    if stage is None or stage is Stage.WAITING_FOR_ENGINE:
        return "unheard" if stage is None else "waiting"
    if jobs > 1:
        return "in company"
    if isinstance(error, EngineStalled):
        raise error
    raise EngineCrashed("the engine ended while it generated this song") from error


class EngineClient(EngineLink):
    """One connection, one job at a time. Not for several threads."""

    def __init__(self, socket_path: Path, stall_timeout_s: float, cancel_timeout_s: float) -> None:
        super().__init__(socket_path)
        self._stall_timeout_s = stall_timeout_s
        self._cancel_timeout_s = cancel_timeout_s

    @property
    def model(self) -> Model | None:
        """What the engine has loaded; None until it is ready."""
        return self.hello.model if self.hello and self.hello.stage == "ready" else None

    def ready(self, wait_s: float = 0.0) -> bool:
        """Whether a song can be asked for; waits up to `wait_s` for the engine to say so."""
        self.listen() if self.model else self.listen(wait_s)
        return self.model is not None

    def wait_ready(self, held: HeldJob) -> Model:
        """Wait for a loaded model, which is not counted as the job's time.

        Raises:
            HandBack: this worker drains; another one has an engine.
        """
        asked_at_s = time.monotonic()
        while not self.ready(_POLL_S):
            held.report(Stage.WAITING_FOR_ENGINE)
            held.not_counted(time.monotonic() - asked_at_s)
            asked_at_s = time.monotonic()
            held.check()
            if held.drain.requested:
                raise HandBack("the worker leaves while its engine is not ready, and gives the job back")
        if self.model is None:
            raise EngineCrashed("the engine is ready without a model")
        return self.model

    def generate(self, request: Generate, audio: Sequence[Samples], held: HeldJob, keep: Keep) -> Generated:
        """All variations of a job, each given to `keep` as it comes; of a variation that comes twice the last counts.

        An engine that is lost while it generates several jobs is lost to one of them: each is asked for again, alone,
        and only the job that ends the engine once more is charged for it.

        Raises:
            EngineCrashed: the engine ended during this song, generated alone.
            EngineStalled: it said nothing for the stall timeout, and was killed; likewise.
            SerinetteError: what the engine says of the song (Unsupported, EngineOutOfMemory, ...).
            Interruption, JobTimeout: as `HeldJob.check`; the engine has stopped, or was killed.
        """
        unheard = 0
        while True:
            self.wait_ready(held)
            answer = self._ask(request, audio, held, keep)
            if isinstance(answer, Generated):
                return answer
            if isinstance(answer, Failed):
                raise of_code(answer.error.code, answer.error.message)
            if isinstance(answer, Stopped):
                raise EngineCrashed("the engine stopped a song that was not canceled")
            unheard = unheard + 1 if answer == "unheard" else 0
            if unheard == _UNHEARD_TRIES:
                raise EngineCrashed("the engine ended whenever it was asked for this song")
            whose = "another song"
            if answer == "in company":
                request = request.model_copy(update={"alone": True})
                whose = "one of several songs, this among them"
            log.info("job %s: the engine was lost to %s; waiting for the next one", held.job_id, whose)

    def _ask(
        self, request: Generate, audio: Sequence[Samples], held: HeldJob, keep: Keep
    ) -> Generated | Failed | Stopped | _Lost:
        answer: Message | None = None
        stage: Stage | None = None
        jobs = 1
        try:
            self._send(request, audio)
            heard_at_s = time.monotonic()
            while not isinstance(answer, Generated | Failed | Stopped):
                if isinstance(answer, Report):
                    stage, jobs = answer.stage, answer.jobs
                    held.report(answer.stage, answer.step, answer.steps)
                elif isinstance(answer, Decoded):
                    keep(answer.index, answer.song, self.connection.take_samples(answer.song))
                held.check()
                asked_at_s = time.monotonic()
                answer = self.connection.receive(_POLL_S)
                if answer:
                    heard_at_s = time.monotonic()
                self._end_if_silent(time.monotonic() - heard_at_s, stage)
                if stage is Stage.WAITING_FOR_ENGINE:
                    held.not_counted(time.monotonic() - asked_at_s)
        except HandBack:
            self.close()  # the whole worker leaves, and the engine need not stop first
            raise
        except (Interruption, JobTimeout):
            self._stop()
            raise
        except (EngineStalled, OSError) as error:
            self.close()
            return _lost(error, stage, jobs)
        return answer

    def _send(self, request: Generate, audio: Sequence[Samples]) -> None:
        descriptors: list[int] = []
        try:
            descriptors += [share_samples(samples) for samples in audio]
            self.connection.send(request, descriptors, _SEND_TIMEOUT_S)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

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
            self.connection.send(Cancel(), timeout_s=_SEND_TIMEOUT_S)
            while not isinstance(
                self.connection.receive(max(0.001, until_s - time.monotonic())), Generated | Failed | Stopped
            ):
                if time.monotonic() >= until_s:
                    self._kill(f"it did not stop a song within {self._cancel_timeout_s:g} s")
                    break
        except OSError:  # gone, and the song with it
            pass
        self.close()

    def _kill(self, why: str) -> None:
        if self.hello:
            log.warning("killing the engine, process %d: %s", self.hello.pid, why)
            with suppress(ProcessLookupError):
                os.kill(self.hello.pid, signal.SIGKILL)
