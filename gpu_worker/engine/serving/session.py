"""One slot's connection to the engine: its own thread reads, any thread writes."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

from gpu_worker.engine.serving.generation import Generation
from gpu_worker.wire import AskVitals, Cancel, Connection, Failed, Generate, Message, Vitals
from serinette.errors import Interruption, RequestError
from serinette.job import JobError
from serinette.spec import GenerationSpec

log = logging.getLogger(__name__)

# A slot that reads nothing for so long is gone: the model must not wait for it.
_SEND_TIMEOUT_S = 10


class Session(threading.Thread):
    """Reads one slot's requests and queues its jobs; a slot that goes away gives up its job."""

    def __init__(
        self,
        sock: socket.socket,
        take: Callable[[Generation], None],
        leave: Callable[[Session], None],
        vitals: Callable[[], Vitals],
    ) -> None:
        super().__init__(name="session", daemon=True)
        # The kernel's timeout, as the socket's own would bound the reading too.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
        self._connection = Connection(sock)
        self._take = take
        self._leave = leave
        self._vitals = vitals
        self._writing = threading.Lock()
        self._open = True
        self._generation: Generation | None = None

    def run(self) -> None:
        """Read until the slot goes away or sends what it may not."""
        try:
            while True:
                self._handle(self._connection.receive(None))
        except (OSError, ValueError) as error:
            log.debug("a slot is gone: %s", error)
        finally:
            if self._generation is not None:
                self._generation.cancel()
            with self._writing:
                self._open = False
                self._connection.close()
            self._leave(self)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send to the slot; nothing happens when it is gone, as its own thread ends then."""
        with self._writing:
            if not self._open:
                return
            try:
                self._connection.send(message, list(descriptors))
            except OSError as error:
                log.warning("a slot does not take its messages and is given up: %s", error)
                self._connection.hang_up()

    def _handle(self, message: Message | None) -> None:
        if isinstance(message, Cancel):
            if self._generation is not None:
                self._generation.cancel()
        elif isinstance(message, AskVitals):
            self.send(self._vitals())
        elif isinstance(message, Generate):
            if self._generation is not None and not self._generation.answered:
                raise ConnectionError("a slot asked for a second song before it had its first")
            audio = {str(part.role): self._connection.take_samples(part) for part in message.audio}
            try:
                spec = GenerationSpec.from_wire(message.spec)
            except (RequestError, Interruption) as error:
                self.send(Failed(error=JobError(code=error.code, message=error.message, retryable=error.retryable)))
                return
            self._generation = Generation(message.job_id, spec, audio, self.send, alone=message.alone)
            self._take(self._generation)
        else:
            raise ConnectionError(f"a slot sent {message!r:.80}, which only an engine sends")


def accept(listener: socket.socket, connected: Callable[[socket.socket], None]) -> None:
    """Hand over every slot's connection, for as long as the process lives."""
    while True:
        try:
            sock, _ = listener.accept()
            connected(sock)
        except OSError as error:  # the slot left at once, or no descriptor is free at present
            log.warning("a slot's connection could not be taken: %s", error)
            time.sleep(0.1)
