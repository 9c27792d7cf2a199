"""`python -m api`: the gateway on uvicorn."""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
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
from serinette.own_directory import own_directory
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
        with own_directory(Path(tempfile.gettempdir()), "serinette-api-") as directory:
            tempfile.tempdir = str(directory)
            return _serve(settings)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 2


def _serve(settings: GatewaySettings) -> int:
    app = create_app(settings)
    telemetry.serve_metrics(app.state.metrics.registry, settings)
    sys.setswitchinterval(_SWITCH_S)
    gc.freeze()  # objects made at start live as long as the process: no collection needs to traverse them
    server = _Server(_config(app, settings), app.state.parts)
    server.run()
    return 0 if server.started else 1


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
