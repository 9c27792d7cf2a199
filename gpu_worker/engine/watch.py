"""Between a model at work and those who wait for it: tells them where it is, and stops it when nobody waits."""

from __future__ import annotations

from gpu_worker.engine.base import StepObserver
from serinette.errors import Canceled
from serinette.job import Stage


class Watch:
    """The observer of one batch. Raises Canceled out of the model's own code once every song is given up."""

    def __init__(self, observe: StepObserver, size: int) -> None:
        self._observe = observe
        self._size = size
        self._last: tuple[Stage, int | None, int | None] = (Stage.CONDITIONING, None, None)
        self.given_up: frozenset[int] = frozenset()

    def tell(self, stage: Stage, step: int | None = None, steps: int | None = None) -> None:
        """Tell where the model is."""
        self._last = (stage, step, steps)
        self.again()

    def again(self) -> None:
        """Tell it once more, as a sign of life in the midst of a long stage."""
        self.given_up = self._observe(*self._last)
        if len(self.given_up) == self._size:
            raise Canceled("the song is no longer wanted")
