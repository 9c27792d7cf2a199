"""What the commands show in terminals of 80 and 200 columns: nothing over the edge, and what matters is there."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from serinette.batch import Batch, BatchCounts, BatchLine, BatchStatus, LineStatus
from serinette.cli import batches, options, status, terminal
from serinette.client import BatchOptions, Client
from serinette.errors import ConfigurationError
from serinette.job import JobError, now
from serinette.presence import ColdStart
from serinette.views import PoolView, QueueView, WorkerPoolView, WorkersView, WorkerView

LONG = "a name that goes on and on, as names of machines and batches do where programs choose them " * 2
ID = "batch-0123456789abcdef0123456789abcdef"


def a_batch(status: str = "in_progress", **counts: int) -> Batch:
    given = {"total": 20_000, "released": 500, "completed": 412, "failed": 3, "running": 2, **counts}
    return Batch(
        id=ID,
        tenant="t",
        status=BatchStatus(status),
        name=LONG,
        waiting_for="the lane: 96 songs of yours wait in it already, and so many are released at a time",
        request_counts=BatchCounts(**given),
        created_at=now() - timedelta(hours=3),
    )


def a_worker(stage: str) -> WorkerView:
    return WorkerView(
        name="serinette-worker-h100-7f9c6d5b8-x2lkq",
        stage=stage,
        slots=8,
        busy_slots=3,
        model="ACE-Step/acestep-v15-xl-turbo-diffusers",
        device="NVIDIA H100 80GB HBM3",
        message="",
        cold_start=ColdStart(),
        started_at=now() - timedelta(days=2),
    )


def a_pool(name: str, **given: object) -> WorkerPoolView:
    unknown = dict.fromkeys(("model", "min_workers", "max_workers", "pods", "waiting_for", "waiting_code"))
    return WorkerPoolView.model_validate({"name": name, **unknown, "brake": (), "workers": (), **given})


POOLS = (
    a_pool("default", min_workers=0, max_workers=8, waiting=12, workers=(a_worker("ready"), a_worker("loading"))),
    a_pool("xl", waiting=3, waiting_for="a node with a free GPU: " + LONG, brake=("crash-loop: " + LONG,)),
)


class _Recorded:
    """Answers what the gateway would, to a command that is called as a function."""

    def __init__(self) -> None:
        self.batches = self

    def __enter__(self) -> _Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def workers(self) -> WorkersView:
        return WorkersView(pools=POOLS)

    def queue(self) -> QueueView:
        pool = PoolView(name="default", lanes=(), running=2, free_slots=5, pace_s=None, workers=POOLS[0].workers)
        return QueueView(pools=(pool,))

    def list(self, limit: int) -> tuple[Batch, ...]:
        return (a_batch(), a_batch("completed", completed=19_997))


def _a_batch_on_its_way() -> None:
    with batches.BatchView(LONG) as view:
        view.show(a_batch())
        view.show(a_batch(completed=600))
        terminal.output.print(view.get_renderable())


def _its_end() -> None:
    missing = [
        BatchLine(line=7, status=LineStatus.FAILED, custom_id="x", error=JobError(code="timeout", message="too slow"))
    ] * 12
    batches.show_end(missing, 19_988, 123_456_789_012, a_batch("completed", completed=19_988))


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize(
    ("show", "words"),
    [
        (status.workers, ["STAGE", "loading", "3/8", "2 d"]),
        (batches.list_, [ID, "in_progress", "412/20,000", "3 h"]),
        (_a_batch_on_its_way, ["600 of 20,000 generated, 3 failed, 2 running"]),
        (_its_end, ["SUCCEEDED", "19,988", "123,456,789,012"]),
    ],
)
def test_no_line_is_wider_than_the_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int, show: Callable[[], None], words: list[str]
) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    comments = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    for module in (status, batches, terminal):
        for name, console in (("output", screen), ("errors", comments)):
            monkeypatch.setattr(module, name, console, raising=False)
    monkeypatch.setattr(options, "Client", lambda *_, **__: _Recorded())
    show()
    printed = screen.file.getvalue() if isinstance(screen.file, io.StringIO) else ""
    lines = [line.rstrip() for line in printed.splitlines()]
    assert lines
    assert [line for line in lines if len(line) > width] == []
    assert [word for word in words if word not in printed] == []


@pytest.mark.parametrize(
    ("first", "now_s", "ended", "left_s"),
    [((0.0, 0), 10.0, 5, 190.0), ((0.0, 50), 10.0, 50, None), ((5.0, 50), 15.0, 60, 40.0), ((5.0, 0), 5.0, 9, None)],
)
def test_how_long_a_batch_still_takes(first: tuple[float, int], now_s: float, ended: int, left_s: float | None) -> None:
    assert batches.left_s(first, now_s, ended, 100) == left_s


def test_a_label_is_a_name_and_a_value() -> None:
    assert options.pair_of("album=blue=green") == ("album", "blue=green")


def test_a_state_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("{}")
    (tmp_path / batches.STATE_FILE).write_text("{")
    with pytest.raises(ConfigurationError, match="erase it to begin again"):
        batches.run_to_end(Client(), prompts, tmp_path, BatchOptions(), retry=False, as_json=False)
