"""A receiver of webhooks: a real HTTP server that remembers what came and answers as configured."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "whsec_" + "c2VyaW5ldHRlLXRlc3Qtc2VjcmV0LTAwMDE="


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Receiver:
    """Answers with the statuses of `answers`, then with 200; `meanwhile` happens before it does."""

    port: int = 0
    answers: list[int] = field(default_factory=list)
    came: list[Received] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # that TLS connections asked for
    meanwhile: Callable[[], object] = lambda: None

    @property
    def ids(self) -> list[str]:
        return [each.headers["webhook-id"] for each in self.came]


class _Server(ThreadingHTTPServer):
    # With the library's 5 the kernel drops and then resets some of the connections that come at one moment.
    request_queue_size = 128


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver on a free port of 127.0.0.1."""
    target = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            headers = {name.lower(): value for name, value in self.headers.items()}
            target.came.append(Received(self.path, headers, body))
            target.meanwhile()
            status = target.answers.pop(0) if target.answers else 200
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", f"http://127.0.0.1:{target.port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not to stderr."""

    server = _Server(("127.0.0.1", 0), Handler)
    target.port = server.server_address[1]
    if tls:
        tls.sni_callback = lambda _socket, name, _context: target.names.append(name)
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield target
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
