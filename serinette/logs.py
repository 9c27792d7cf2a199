"""Logging of every process: text lines for people, or JSON lines for a log store, each with its job's id."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType

from serinette.names import unknown_variables
from serinette.settings import SharedSettings

# Fields of all log lines in this context: `job`, `attempt`, `trace_id`. Threads of a job are started in its context.
_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))

# Escapes control characters, which a client could use to forge log lines or to move a terminal's cursor.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


# Processes that others are started by: those have the same environment, and say nothing of it again.
_FIRST = {"gateway", "controller", "worker"}


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Add fields to all log lines inside, e.g. `about(job=job_id)`."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


def configure(settings: SharedSettings, part: str) -> None:
    """Log to stderr by `log_format` and `log_level`, including uncaught exceptions. Call it once, in `main()`.

    `part` names the process: gateway, controller, worker, slot, engine.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(part) if settings.log_format == "json" else TextLines())
    handler.addFilter(_with_context)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in ("httpx", "httpcore", "urllib3"):  # they log a line for each of our requests
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    if settings.log_format == "json":
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread
    if part in _FIRST:
        for sentence in unknown_variables(os.environ):
            logging.getLogger("serinette").warning("%s", sentence)


class TextLines(logging.Formatter):
    """`2026-01-31 12:00:00,000 WARNING api.problems: message job=...`, one line per record except for tracebacks."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's own name
        """The line with control characters escaped, and the fields that it does not contain at its end."""
        line = super().formatMessage(record).translate(_CONTROL)
        return line + "".join(f" {name}={value}" for name, value in _fields(record).items() if value not in line)


class JsonLines(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, part, logger, message, context fields, exception."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self._part = part

    def format(self, record: logging.LogRecord) -> str:
        """The line. Never raises: a failed log line must not fail a job."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "part": self._part,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # ASCII only, so that a lone surrogate is no error and a Unicode line separator does not end the line.
        return json.dumps(line)


# An API key after its public id (serinette/credentials.py), and the token of a signed link.
_SECRET = re.compile(r"(srn_[0-9a-f]{12}_|[?&]token=)[^\s&/\"']+")


def _with_context(record: logging.LogRecord) -> bool:
    # The fields are read here, in the thread that logs; the line may be formatted in another.
    record.about = _about.get()
    with suppress(TypeError, ValueError):  # wrong arguments of a log call, which the handler reports
        message = record.getMessage()
        if _SECRET.search(message):  # servers log headers and URLs at DEBUG, and WebSockets' URLs always
            record.msg, record.args = _SECRET.sub(r"\1***", message), ()
    return True


def _fields(record: logging.LogRecord) -> Mapping[str, str]:
    fields: Mapping[str, str] = getattr(record, "about", {})
    return fields


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("serinette").critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is not None:
        _log_uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)
