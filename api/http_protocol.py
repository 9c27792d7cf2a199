"""uvicorn's protocols with bounds: HTTP/1.1 on incomplete requests (long or slow heads, stalled bodies, endless
trailers, and data that arrives after the response) and on answers that are not read, WebSockets on what a listener
sends.

uvicorn's own parser bounds none of these: a few hundred clients that send a byte now and then could hold its
connections for ever, an endless header would fill its memory, and trailers are appended to the headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.problems import MEDIA_TYPE, problem_of
from api.response_headers import REQUEST_ID, new_request_id
from serinette.errors import RequestError

# Bound of a head, and of data outside of bodies: trailers, chunk extensions, empty lines between requests.
HEAD_BYTES = 65_536
# HEAD_S: from a new connection, or a request's first byte, to the end of its head. BODY_S: between two parts of a body.
HEAD_S = 30.0
BODY_S = 60.0
# Least mean rate of a body after its first BODY_S, without the time in which the application did not read.
BODY_BYTES_A_SECOND = 4_096
# Longest that an answer waits to be read: by then a player has buffered enough, and will ask for the rest by its range.
UNREAD_S = 300.0
# Bounds on the rest of a body that is read and discarded after its response, so that a client that is still sending
# receives the response instead of a reset. A shorter rest keeps the connection alive.
DISCARD_BYTES = 1_048_576
DISCARD_S = 10.0

# Bytes that one listener may send: its head, and days of pings. uvicorn answers every ping however much of that waits
# to be read, and keeps 16 MiB of a message that never ends.
LISTENER_BYTES = 1_048_576

_TOO_LONG = f"a head, or what comes beside a body, has more than the {HEAD_BYTES} bytes allowed; send less"
_TOO_SLOW = (
    f"the body came too slowly: no pause in it may be longer than {BODY_S:.0f} s, and behind the first {BODY_S:.0f} s "
    f"{BODY_BYTES_A_SECOND} bytes must come in each second on average; send it again where the connection is better"
)
_MALFORMED = "this is no HTTP/1.1 request that can be read"
_NO_UPGRADE = "a WebSocket begins with a GET that has no body and at most 128 headers of 8 KiB each"


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _in_head = True
    _discards = False
    _answered: RequestResponseCycle | None = None
    # Bytes since the request's first byte, or since the last byte of its body that was used.
    _unwanted_bytes = 0
    _heard_s = 0.0
    # Since when the client could send its body, and how much of it came.
    _body_since_s = 0.0
    _body_bytes = 0
    _watch: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the timeout of the first request."""
        super().connection_made(transport)
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeouts. uvicorn informs the last request alone, which may wait behind the one being answered."""
        self._rest()
        self._stop_unread()
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        """The client does not read what is sent: it has a while to begin again."""
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        self._stop_unread()

    def handle_websocket_upgrade(self) -> None:
        """Stop the timeouts: WebSockets have their own pings."""
        self._rest()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # no answer could follow the upgrade's, and its application would not hear the end
            return
        self._stop_unread()
        self._unwanted_bytes = 0
        super().handle_websocket_upgrade()

    def data_received(self, data: bytes) -> None:
        """Parse the data, and close the connection if a bound is exceeded."""
        self._heard_s = self.loop.time()
        self._unwanted_bytes += len(data)
        super().data_received(data)
        bound = DISCARD_BYTES if self._discards else HEAD_BYTES
        if self._unwanted_bytes > bound and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, _TOO_LONG)

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._begin()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and drop trailers: the application has started and could take one for a header."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._in_head = False
        self._body_since_s, self._body_bytes = self.loop.time(), 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if not self._discards:
            self._unwanted_bytes = 0
            self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._rest()
        self._discards, self._unwanted_bytes = False, 0
        super().on_message_complete()
        # Of a WebSocket there is no cycle. One that is disconnected was answered that its body is too slow.
        if self.cycle is not None and self.cycle.disconnected:
            self.transport.close()

    def on_response_complete(self) -> None:
        """The response is complete; the rest of the request is discarded, and must end soon."""
        super().on_response_complete()
        # If a pipelined request follows, the current cycle is its own, which is not complete.
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._rest()
            self._discards, self._unwanted_bytes = True, 0
            self._watch = self.loop.call_later(DISCARD_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """What cannot be parsed."""
        del msg
        self._refuse(HTTPStatus.BAD_REQUEST, _MALFORMED)

    def _refuse(self, status: HTTPStatus, words: str) -> None:
        """Answer for the parser if nothing else is being answered, and close."""
        cycle = self.cycle
        free = cycle is None or cycle.response_complete or not (self._in_head or cycle.response_started)
        if free and not self._discards:  # what is discarded was answered
            self.transport.write(_refusal(status, words, {} if self._in_head else self.scope))
        self.transport.close()

    def _end_slow_body(self) -> None:
        """Answer, and take for a while what still comes; to the application the client is gone."""
        cycle = self.cycle
        if cycle.response_started or cycle is not self._answered:  # or the answer to a request before it is not out
            self.transport.close()
            return
        self.transport.write(_refusal(HTTPStatus.REQUEST_TIMEOUT, _TOO_SLOW, self.scope))
        cycle.disconnected = cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
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

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _look(self) -> None:
        self._watch = None
        if self.transport.is_closing():
            return
        if self._in_head:
            self.transport.close()
            return
        left_s = self._body_left_s(self.loop.time())
        if left_s <= 0:
            self._end_slow_body()
        else:
            self._watch = self.loop.call_later(left_s, self._look)

    def _body_left_s(self, at_s: float) -> float:
        """Seconds until the body may have been too slow; none are left when it was."""
        if self.flow.read_paused:  # then the application is slow, not the client
            self._body_since_s = at_s - self._body_bytes / BODY_BYTES_A_SECOND
            return BODY_S
        late_s = self._body_since_s + BODY_S + self._body_bytes / BODY_BYTES_A_SECOND
        return min(self._heard_s + BODY_S, late_s) - at_s


def _refusal(status: HTTPStatus, words: str, scope: Mapping[str, Any]) -> bytes:
    """A whole answer, of a request that the application did not answer."""
    error = RequestError(words)
    error.retryable = status is HTTPStatus.REQUEST_TIMEOUT
    problem = problem_of(error, scope.get("path", ""), status)
    body = problem.model_dump_json(exclude_none=True).encode()
    headers = {
        "content-type": MEDIA_TYPE,
        "content-length": len(body),
        "connection": "close",
        "x-request-id": scope.get(REQUEST_ID) or new_request_id(),
        "x-content-type-options": "nosniff",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode() + body


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """One WebSocket, of which nothing but its end is listened to."""

    _received_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse the data; a listener that sends too much is cut off, without what it left unread."""
        self._received_bytes += len(data)
        if self._received_bytes > LISTENER_BYTES:
            self.transport.abort()
            return
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():  # its library would wait for ever
            self.transport.write(_refusal(HTTPStatus.BAD_REQUEST, _NO_UPGRADE, {}))
            self.transport.close()
