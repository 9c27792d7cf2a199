"""A server that gives prepared answers, and both clients before it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from serinette.client import Client, Retry
from tests.unit.either_client import awaited

# Pauses that no test has to wait for.
QUICK = Retry(patience_s=0.5, first_s=0.001, longest_s=0.01)
CLIENTS = ("Client", "AsyncClient")


@dataclass
class Answer:
    """What the server says; with `cut_short` it promises more bytes than it sends."""

    status: int
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_short: bool = False


class Server(ThreadingHTTPServer):
    """Gives the answers of a list, one a request; the last one again and again."""

    def __init__(self, answers: list[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, body, dict(self.headers)))
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        content = answer.body.encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) + (100 if answer.cut_short else 0)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    do_GET = do_POST = do_DELETE = answer  # noqa: N815  # the library's names

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering() -> Iterator[Server]:
    """One that runs; give it `answers`."""
    server = Server([])
    thread = Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def either(kind: str, url: str) -> Iterator[Any]:
    """A Client, or an AsyncClient that waits."""
    if kind == "Client":
        with Client(url, retry=QUICK) as client:
            yield client
    else:
        with awaited(url, QUICK) as client:
            yield client


def problem(status: int, **fields: object) -> Answer:
    return Answer(
        status, json.dumps({"status": status, "title": "", **fields}), {"Content-Type": "application/problem+json"}
    )
