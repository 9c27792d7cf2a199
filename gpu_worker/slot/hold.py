"""A job that this slot holds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gpu_worker.slot.clock import StageClock
from gpu_worker.slot.drain import Drain
from serinette.errors import Canceled, HandBack, JobTimeout, Superseded
from serinette.job import Attempt
from serinette.jobs import Entry, Lease


@dataclass(slots=True)
class Hold:
    """One attempt from its claim to its end. `entry` is the job's record as it was claimed."""

    entry: Entry
    attempt: Attempt
    lease: Lease
    drain: Drain
    deadline_s: float  # of the monotonic clock
    suspect: bool = False  # an earlier attempt ended with its engine or worker
    canceled: bool = False
    superseded: bool = False
    recording: bool = False  # its record may be written: only that decides now
    generated: bool = False  # the songs that count are this attempt's
    gpu_s: float = 0.0  # in the engine, whatever came of it
    clock: StageClock = field(default_factory=StageClock)
    claim_began_s: float = field(default_factory=time.time)  # Unix

    @property
    def job_id(self) -> str:
        """Of the job."""
        return self.entry.id

    @property
    def unrecorded_gpu_s(self) -> float:
        """What the engine did for this attempt, unless the job's record may have it."""
        return 0.0 if self.recording else self.gpu_s

    def check(self) -> None:
        """Called wherever the job may end early: between stages and a few times a second while waiting.

        RQ's SIGALRM would raise at any line, also right after `job.json` is written, and fail a job that has its song.

        Raises:
            Superseded: another attempt has the job, or it has ended.
            Canceled: its cancel flag is set.
            JobTimeout: it ran for longer than its `timeout_s`.
            HandBack: the time to drain is over.
        """
        if self.superseded:
            raise Superseded(f"attempt {self.attempt.number} lost job {self.job_id} to another, or the job has ended")
        if self.canceled and not self.recording:
            raise Canceled("canceled as asked")
        if time.monotonic() > self.deadline_s and not self.recording:
            raise JobTimeout(
                f"the song was not done within {self.entry.timeout_s} s: ask for fewer seconds, steps or variations, "
                "or give a longer timeout_s"
            )
        if self.drain.over:
            raise HandBack("the worker leaves and gives the job back")

    def not_counted(self, seconds: float) -> None:
        """Move the deadline: time that the job waits for the engine is not its own."""
        self.deadline_s += seconds
