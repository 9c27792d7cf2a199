"""`python -m api`: the gateway on uvicorn."""

from __future__ import annotations

import atexit
import fcntl
import gc
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.dependencies import Parts
from api.http_protocol import BoundedHttpProtocol, BoundedWebSocketProtocol
from api.settings import GatewaySettings
from serinette import logs, telemetry
from serinette.errors import ConfigurationError
from serinette.settings import read

# Longer than the idle timeout of proxies (60 s is common), so that no proxy uses a connection that just closed.
KEEP_ALIVE_S = 75
# How long a thread that computes, for instance checks a batch, may keep the interpreter from the event loop each time:
# beside a thread that parses JSON, a loop that sleeps 2 ms and exchanges a byte had 520 to 660 turns in 3 s instead of
# 230 to 350 with Python's own 5 ms (three rounds each on two busy cores; what the thread did varied too much to tell).
_SWITCH_S = 0.0005


class _Server(uvicorn.Server):
    """Ends waits and event streams on SIGTERM, and exits with 0."""

    def __init__(self, config: uvicorn.Config, parts: Parts) -> None:
        super().__init__(config)
        self._parts = parts

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # the second signal
            self.force_exit = True
        self.should_exit = True
        self._parts.events.close()


# uvicorn's errors for a WebSocket that is refused with an HTTP response, and for what a client sends as text.
_USELESS = frozenset(
    {"ASGI callable returned without completing handshake.", "Invalid UTF-8 sequence received from client."}
)


def _is_useful(record: logging.LogRecord) -> bool:
    """Drops errors that are no faults of ours."""
    return record.msg not in _USELESS


def main() -> int:
    """Serve until SIGTERM or SIGINT; the exit status."""
    try:
        settings = read(GatewaySettings)
        logs.configure(settings, "gateway")
        telemetry.configure(settings, "gateway")
        logging.getLogger("uvicorn.error").addFilter(_is_useful)
        use_own_temporary_directory()
        app = create_app(settings)
        telemetry.serve_metrics(app.state.metrics.registry, settings)
        sys.setswitchinterval(_SWITCH_S)
        gc.freeze()  # objects made at start live as long as the process: no collection needs to traverse them
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    server = _Server(_config(app, settings), app.state.parts)
    server.run()
    return 0 if server.started else 1


_TEMPORARY = "serinette-gateway-"
_LOCK = "lock"


def use_own_temporary_directory() -> Path:
    """Keep this process's temporary files in a directory of their own, and remove those of gateways that were killed.

    A directory is locked for as long as its process lives, so that several gateways may share a disk.
    """
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{_TEMPORARY}*"):
        with _locked(left) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)
    hidden = Path(tempfile.mkdtemp(prefix=f".{_TEMPORARY}", dir=parent))
    lock = os.open(hidden / _LOCK, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    own = hidden.rename(parent / hidden.name.removeprefix("."))  # found by others only when it is locked
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    tempfile.tempdir = str(own)
    return own


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Whether no living process holds the directory's lock, which is held meanwhile."""
    try:
        lock = os.open(directory / _LOCK, os.O_WRONLY)
    except OSError:  # another user's, or one that is being made
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)


def _config(app: FastAPI, settings: GatewaySettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=BoundedHttpProtocol,
        ws=BoundedWebSocketProtocol,
        timeout_keep_alive=KEEP_ALIVE_S,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # api/request_checks.py reads what is needed of them
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )


if __name__ == "__main__":
    sys.exit(main())
