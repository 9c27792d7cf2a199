"""Batches through both clients, against prepared answers; against the gateway: tests/integration/test_clients.py."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serinette.batch import Batch, BatchCounts, BatchStatus
from serinette.client import BatchOptions, Fetched
from serinette.errors import InvalidBatch, Unavailable
from serinette.job import Artifact, now
from serinette.spec import AudioFormat, GenerationSpec
from tests.unit.answering import CLIENTS, Answer, Server, answering, either, problem

SPEC = GenerationSpec(prompt="jazz")


@pytest.fixture
def server() -> Iterator[Server]:
    with answering() as server:
        yield server


@pytest.fixture(params=CLIENTS)
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    with either(request.param, server.url + "/") as client:
        yield client


def batch_json(status: str, completed: int) -> str:
    counts = BatchCounts(total=3, completed=completed)
    batch = Batch(id="batch-1", tenant="t", status=BatchStatus(status), request_counts=counts, created_at=now())
    return json.dumps({**batch.model_dump(mode="json"), "a_field_of_tomorrow": 1})


def lines_json(*statuses: str, first: int = 1) -> str:
    song = Artifact(
        index=0,
        key="songs/t/job-1/a-0.mp3",
        seed=1,
        format=AudioFormat.MP3,
        content_type="audio/mpeg",
        size_bytes=6,
        sha256=hashlib.sha256(b"a song").hexdigest(),
        duration_s=1,
        sample_rate=48_000,
        channels=2,
    ).model_dump(mode="json")
    lines = [
        {
            "line": number,
            "status": status,
            "job_id": f"job-{number}",
            "artifacts": [song] if status == "succeeded" else [],
        }
        for number, status in enumerate(statuses, first)
    ]
    return json.dumps({"lines": lines})


def test_a_batch_is_sent_as_lines_and_fetched_as_they_end(server: Server, client: Any, tmp_path: Path) -> None:
    server.answers = [Answer(503), Answer(202, batch_json("in_progress", 0))]
    specs = ["jazz", SPEC, {"prompt": "cello", "custom_id": "c"}]
    assert client.batches.create(specs, BatchOptions(name="n", labels={"album": "a b"})).id == "batch-1"
    one, two = server.requests
    assert one[1] == "/v1/batches?name=n&label=album%3Da+b"
    assert [json.loads(line) for line in one[2].splitlines()] == [{"prompt": "jazz"}, {"prompt": "jazz"}, specs[2]]
    assert (one[2], one[3]["Idempotency-Key"]) == (two[2], two[3]["Idempotency-Key"])
    server.answers = [
        Answer(200, batch_json("in_progress", 0)),
        Answer(200, lines_json("succeeded", "running", "pending")),
        Answer(200, "a song"),
        Answer(200, batch_json("completed", 2)),
        Answer(200, lines_json("failed", "succeeded", first=2)),
        Answer(200, "a song"),
    ]
    updates = list(client.batches.results("batch-1", tmp_path / "songs", poll_s=0))
    assert [len(each.files) if isinstance(each, Fetched) else each.status for each in updates] == [
        1,
        "in_progress",
        0,
        1,
        "completed",
    ]
    assert "first=2&" in server.requests[-2][1]
    server.answers = [
        Answer(200, batch_json("completed", 2)),
        Answer(200, lines_json("succeeded", "failed", "succeeded")),
    ]
    assert (
        len(list(client.batches.results("batch-1", tmp_path / "songs", poll_s=0))) == 4
    )  # and nothing is fetched again
    assert "/lines" in server.requests[-1][1]  # nothing is fetched again


def test_what_is_wrong_in_a_batch_is_named_by_line(server: Server, client: Any) -> None:
    wrong = [{"line": 2, "field": "duration_s", "message": "too long"}]
    server.answers = [problem(422, code="invalid_batch", detail="line 2: too long", errors=wrong)]
    with pytest.raises(InvalidBatch) as caught:
        client.batches.create(["jazz"])
    assert caught.value.lines == ((2, "duration_s", "too long"),)


def test_a_batch_is_steered_and_a_retry_is_never_sent_twice(server: Server, client: Any) -> None:
    server.answers = [Answer(200, batch_json("paused", 0))]
    for verb in ("pause", "resume", "cancel", "retry"):
        assert getattr(client.batches, verb)("batch-1").status == "paused"
        assert server.requests[-1][:2] == ("POST", f"/v1/batches/batch-1/{verb}")
    server.answers = [Answer(202, batch_json("in_progress", 0), cut_short=True)]
    with pytest.raises(Unavailable):
        client.batches.retry("batch-1")
    assert len(server.requests) == 5
    server.answers = [Answer(200, batch_json("in_progress", 0)), Answer(200, batch_json("completed", 3))]
    assert client.batches.wait("batch-1", poll_s=0).ended
