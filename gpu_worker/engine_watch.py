"""The supervisor's ear at the engine's socket: where the engine stands, and how it fares."""

from __future__ import annotations

import time
from pathlib import Path

from gpu_worker.wire import AskVitals, Connection, Hello, Vitals

# The supervisor must not wait for a busy engine: what it says is taken in at one of the next looks.
_LOOK_S = 0.001
_CONNECT_TIMEOUT_S = 0.5
# Between two questions how it fares: more often than anybody scrapes.
_ASK_EVERY_S = 5.0


class EngineWatch:
    """A connection that listens, and asks how the engine fares. What it answered last stays until it is gone."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._connection: Connection | None = None
        self._hello: Hello | None = None
        self._ask_at_s = 0.0
        self.vitals: Vitals | None = None

    def look(self) -> Hello | None:
        """What the engine said last; None while there is none, or it has not spoken."""
        try:
            if self._connection is None:
                self._connection = Connection.connect(self._socket_path, _CONNECT_TIMEOUT_S)
            while message := self._connection.receive(_LOOK_S):
                if isinstance(message, Hello):
                    self._hello = message
                elif isinstance(message, Vitals):
                    self.vitals = message
            self._ask(time.monotonic())
        except OSError:  # not there yet, or gone
            self.close()
        return self._hello

    def _ask(self, at_s: float) -> None:
        if self._connection and self._hello and at_s >= self._ask_at_s:
            self._ask_at_s = at_s + _ASK_EVERY_S
            self._connection.send(AskVitals(), timeout_s=_CONNECT_TIMEOUT_S)

    def close(self) -> None:
        """Hang up."""
        if self._connection:
            self._connection.close()
        self._connection = self._hello = self.vitals = None
        self._ask_at_s = 0.0
