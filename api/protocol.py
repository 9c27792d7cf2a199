"""uvicorn's HTTP, with an end to requests that never come whole: heads that are long or slow, bodies that stall.

uvicorn's own parser has bounds for neither: a few hundred clients that send a byte now and then would hold its
connections for ever, and one header without an end would fill its memory.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 65_536
# From a connection, or a request's first byte, to the end of its head; and between two pieces of a body.
HEAD_S = 30.0
BODY_S = 60.0

_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PatientUpToAPoint(HttpToolsProtocol):
    """One connection."""

    _in_head = True
    _head_bytes = 0
    _heard_s = 0.0
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Wait for a first request."""
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._rest()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        """Wait no more: it has pings of its own."""
        self._rest()
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        """Take what came, and refuse a head that is too long."""
        self._heard_s = self.loop.time()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LONG)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._begin()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of it is here."""
        self._rest()
        super().on_message_complete()

    def _begin(self) -> None:
        self._rest()
        self._in_head, self._head_bytes = True, 0
        self._watch = self.loop.call_later(HEAD_S, self._look)

    def _rest(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self) -> None:
        self._watch = None
        if self.transport.is_closing():
            return
        if self._in_head:
            self.transport.close()
            return
        # While reading is paused it is we who are slow.
        left_s = BODY_S if self.flow.read_paused else self._heard_s + BODY_S - self.loop.time()
        if left_s <= 0:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(left_s, self._look)
