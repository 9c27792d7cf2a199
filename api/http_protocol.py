"""uvicorn's HTTP, with an end to requests that never come whole: heads that are long or slow, bodies that stall,
trailers without an end, and what still comes after the answer.

uvicorn's own parser has bounds for none of it: a few hundred clients that send a byte now and then would hold its
connections for ever, one header without an end would fill its memory, and trailers are appended to the headers.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Of a head; and of what belongs to no body: trailers, a chunk's extension, empty lines between requests.
HEAD_BYTES = 65_536
# From a connection, or a request's first byte, to the end of its head; and between two pieces of a body.
HEAD_S = 30.0
BODY_S = 60.0
# What of a body is read after its answer, so that the client that still sends it reads the answer, not a reset; and for
# how long. A rest that is no longer leaves the connection in use.
DISCARD_BYTES = 1_048_576
DISCARD_S = 10.0

_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _in_head = True
    _discards = False
    # Since the request's first byte, or the last byte of its body that is still wanted.
    _unwanted_bytes = 0
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
        self._unwanted_bytes = 0
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        """Take what came, and end what is too long."""
        self._heard_s = self.loop.time()
        self._unwanted_bytes += len(data)
        super().data_received(data)
        bound = DISCARD_BYTES if self._discards else HEAD_BYTES
        if self._unwanted_bytes > bound and not self.transport.is_closing():
            if self._in_head or not self.cycle.response_started:
                self.transport.write(_TOO_LONG)
            self.transport.close()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._begin()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. A trailer is none: the application has begun, and might take it for one."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        if not self._discards:
            self._unwanted_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it is here."""
        self._rest()
        self._discards, self._unwanted_bytes = False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It is answered; what is still to come of it nobody reads, and it must end soon."""
        super().on_response_complete()
        # Of a pipelined request that follows, the cycle is not complete: the one before it came whole.
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._rest()
            self._discards, self._unwanted_bytes = True, 0
            self._watch = self.loop.call_later(DISCARD_S, self.transport.close)

    def _begin(self) -> None:
        self._rest()
        self._in_head, self._discards, self._unwanted_bytes = True, False, 0
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
