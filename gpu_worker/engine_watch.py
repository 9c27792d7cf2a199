"""The supervisor's ear at the engine's socket: where the engine stands."""

from __future__ import annotations

from pathlib import Path

from gpu_worker.engine.wire import Connection, Hello

# The supervisor must not wait for a busy engine: what it says is taken in at one of the next looks.
_LOOK_S = 0.001
_CONNECT_TIMEOUT_S = 0.5


class EngineWatch:
    """A connection that only listens."""

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._connection: Connection | None = None
        self._hello: Hello | None = None

    def look(self) -> Hello | None:
        """What the engine said last; None while there is none, or it has not spoken."""
        try:
            if self._connection is None:
                self._connection = Connection.connect(self._socket_path, _CONNECT_TIMEOUT_S)
            while message := self._connection.receive(_LOOK_S):
                if isinstance(message, Hello):
                    self._hello = message
        except OSError:  # not there yet, or gone
            self.close()
        return self._hello

    def close(self) -> None:
        """Hang up."""
        if self._connection:
            self._connection.close()
        self._connection = self._hello = None
