"""Whether this slot was asked to leave."""

from __future__ import annotations

import time
from types import FrameType

# A signal that a process group and its parent both pass on arrives twice at once, and means the same.
_SAME_SIGNAL_S = 1.0
# Time to tell Redis that a job is given back, should it be away just then.
_LAST_WORDS_S = 10.0


class Drain:
    """Set by SIGTERM and SIGINT, asked everywhere else.

    The handler only takes the time: raised from there, RQ's StopRequested can land in the middle of a transaction
    (rq#2175).
    """

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s`: how long a job in hand may still sing."""
        self._timeout_s = timeout_s
        self._requested_at_s: float | None = None
        self._over_at_s = float("inf")
        self.holding = False  # a job, from its claim to the record of its end

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Leave when the job in hand is done; asked a second time, give it back at once."""
        at_s = time.monotonic()
        if self._requested_at_s is None:
            self._requested_at_s = at_s
            self._over_at_s = at_s + self._timeout_s
        elif at_s - self._requested_at_s > _SAME_SIGNAL_S:
            self._over_at_s = min(self._over_at_s, at_s)

    @property
    def requested(self) -> bool:
        """Take no more jobs."""
        return self._requested_at_s is not None

    @property
    def over(self) -> bool:
        """Give the job in hand back."""
        return time.monotonic() >= self._over_at_s

    @property
    def must_leave(self) -> bool:
        """Leave now, whatever could not be told to Redis."""
        expired = time.monotonic() >= self._over_at_s + _LAST_WORDS_S
        return self.requested and (expired or not self.holding)
