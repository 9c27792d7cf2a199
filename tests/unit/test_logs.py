"""Log lines: for people, for a log store, and never forged by what a client sends."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from typing import Any

import pytest

from gpu_worker.slot.held_job import Heartbeat
from serinette import logs
from serinette.logs import JsonLines, TextLines
from serinette.settings import SharedSettings

FORGED = "one\n2026-01-31 12:00:00,000 INFO api: two\x1b[2J\u2028three"


@pytest.fixture(autouse=True)
def _restored() -> Any:
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def configured(log_format: str, capsys: pytest.CaptureFixture[str]) -> logging.Logger:
    logs.configure(SharedSettings.model_validate({"log_format": log_format}), "gateway")
    return logging.getLogger("api.test")


def test_a_json_line_says_when_where_what_and_about_which_job(capsys: pytest.CaptureFixture[str]) -> None:
    log = configured("json", capsys)
    with logs.about(job="j1"), logs.about(attempt="a1"):
        log.warning("encoded in %g s", 1.5)
    log.info("over")
    inside, after = (json.loads(line) for line in lines(capsys))
    assert inside.pop("time").endswith("+00:00")
    assert inside == {
        "level": "warning",
        "part": "gateway",
        "logger": "api.test",
        "message": "encoded in 1.5 s",
        "job": "j1",
        "attempt": "a1",
    }
    assert "job" not in after


def test_an_exception_stays_in_its_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = configured("json", capsys)
    try:
        raise ValueError(FORGED)
    except ValueError:
        log.exception("failed")
    (line,) = lines(capsys)
    assert json.loads(line)["exception"].startswith("Traceback")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_client_sends_begins_no_line_of_its_own(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = configured(log_format, capsys)
    log.info("%s", FORGED)
    (line,) = lines(capsys)
    assert "two" in line
    assert "three" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines("slot")])
def test_text_that_is_no_unicode_can_be_logged(formatter: logging.Formatter) -> None:
    record = logging.LogRecord("api", logging.INFO, "file", 1, "%s", ("\udcff",), None)
    assert "udcff" in ascii(formatter.format(record))


def test_a_text_line_names_the_job_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = configured("text", capsys)
    with logs.about(job="j1"):
        log.info("job j1: begins")
        log.info("uploaded")
    first, second = lines(capsys)
    assert first.count("j1") == 1
    assert second.endswith("INFO api.test: uploaded job=j1")


def test_what_a_heartbeats_thread_logs_names_its_job(capsys: pytest.CaptureFixture[str]) -> None:
    log = configured("json", capsys)
    heartbeat = Heartbeat(lambda _: log.info("beats"), 60)
    with logs.about(job="j1"):
        heartbeat.start()
    heartbeat.beat_and_wait(30)
    heartbeat.stop()
    assert json.loads(lines(capsys)[0])["job"] == "j1"


def test_less_severe_lines_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(SharedSettings(log_level="WARNING"), "gateway")
    logging.getLogger("api.test").info("quiet")
    logging.getLogger("httpx").warning("loud")
    assert len(lines(capsys)) == 1


@pytest.mark.parametrize("where", ["raise ValueError('x')", "Thread(target=int, args=('x',)).start()"])
def test_an_uncaught_exception_is_a_json_line_too(where: str) -> None:
    code = (
        "from threading import Thread; from serinette import logs; from serinette.settings import SharedSettings; "
        f"logs.configure(SharedSettings(log_format='json'), 'worker'); {where}"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (line,) = ended.stderr.splitlines()
    assert json.loads(line)["level"] == "critical"
    assert "ValueError" in json.loads(line)["exception"]
