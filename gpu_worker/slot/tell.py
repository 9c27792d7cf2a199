"""How the parts of a song's way tell their progress."""

from __future__ import annotations

from typing import Protocol

from serinette.job import Stage


class Tell(Protocol):
    """Told of a stage, and of the denoising steps done and in all. Never waits, never raises."""

    def __call__(self, stage: Stage, step: int | None = None, steps: int | None = None) -> None:
        """Tell one stage or step."""
