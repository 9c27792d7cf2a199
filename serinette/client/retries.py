"""When to try again, and how long to wait before. Pure, but for the clock."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from serinette.errors import SerinetteError


@dataclass(frozen=True, slots=True)
class Retry:
    """How patient a client is. Pauses double from `first_s` to `longest_s`, each drawn between its half and its whole.

    A pause that the server asks for (`Retry-After`) is kept; a pause beyond `patience_s` is not begun: then the
    error is raised at once, with the pause in `retry_after_s` where it has one.
    """

    patience_s: float = 60.0  # from the first failure; 0: never try again
    first_s: float = 0.25
    longest_s: float = 10.0
    unanswered: bool = True  # whether to try again where no server has ever answered

    def pause_s(self, failures: int, asked_s: float | None, draw: float) -> float:
        """Seconds before the next try, after so many failures in a row; `draw` is from 0 to 1."""
        if asked_s is not None:
            return asked_s
        whole_s: float = min(self.longest_s, self.first_s * 2 ** min(failures - 1, 32))
        return whole_s * (1 + draw) / 2


class TransientError(Exception):
    """A try failed in a way that may pass: `cause` is what to raise if it does not."""

    def __init__(self, cause: SerinetteError, *, asked_s: float | None = None, perhaps_done: bool = False) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.asked_s = asked_s  # the pause that the server asked for
        self.perhaps_done = perhaps_done  # the request may have had its effect, the answer having been lost


class RetryBudget:
    """What one call may still spend on retries."""

    def __init__(
        self,
        retry: Retry,
        *,
        repeatable: bool,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`repeatable`: doing it twice is the same as once. `deadline`: of `clock`, beyond which nothing is begun."""
        self._retry = retry
        self._repeatable = repeatable
        self._deadline = deadline
        self._clock = clock
        self._draw = draw
        self.renew()

    def renew(self) -> None:
        """It went on: what failed before is forgotten."""
        self._failures = 0
        self._since = 0.0

    def pause_s(self, error: TransientError, *, answered: bool) -> float:
        """How long to wait before the next try; `answered`: a server has, at some time.

        Raises:
            SerinetteError: the error's cause, when there is to be no other try.
        """
        now = self._clock()
        if self._failures == 0:
            self._since = now
        self._failures += 1
        pause_s = self._retry.pause_s(self._failures, error.asked_s, self._draw())
        ends = self._since + self._retry.patience_s
        if self._deadline is not None:
            ends = min(ends, self._deadline)
        hopeless = (error.perhaps_done and not self._repeatable) or not (answered or self._retry.unanswered)
        if hopeless or now + pause_s > ends:
            raise error.cause from error
        return pause_s


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """`Retry-After` in seconds (RFC 9110, 10.2.3: a number of them, or a date); None when it is neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(int(header)))
    except ValueError:
        pass
    except OverflowError:
        return None
    try:
        at = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())
