"""`serinette run` where no server is needed: what it takes, and how it ends; and a log read in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from serinette.cli.containers import exit_code, input_files, spec_of
from serinette.client.calls import ordered
from serinette.client.containers import ContainerFields, GrowingLog
from serinette.container import ContainerSpec, Run
from serinette.job import Job, JobError, JobOptions, JobStatus, now
from serinette.names import Lane
from serinette.spec import GenerationSpec

IMAGE = "registry.example/audio/stems:1"
JOB_ID = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
UPLOAD = "upload-" + "0" * 32
NOTHING: dict[str, Any] = dict.fromkeys(("env", "secrets", "labels", "as_args"))


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory to stand in."""
    monkeypatch.chdir(tmp_path)
    for name in ("song.mp3", "odd:name", "data/a", "data/deep/b", "none/.hidden", "many/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for number in range(33):
        (tmp_path / f"many/{number}").touch()
    (tmp_path / "empty").mkdir()


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ("song.mp3", {"song.mp3": "song.mp3"}),
        ("song.mp3:in/a.mp3", {"in/a.mp3": "song.mp3"}),
        ("./data", {"data/a": "data/a", "data/deep/b": "data/deep/b"}),
        ("data/:set", {"set/a": "data/a", "set/deep/b": "data/deep/b"}),
        ("data/:set/", {"set/a": "data/a", "set/deep/b": "data/deep/b"}),
        ("odd:name:b", {"b": "odd:name"}),
        (f"{UPLOAD}:a", {"a": {"upload": UPLOAD}}),
        (UPLOAD, {UPLOAD: {"upload": UPLOAD}}),
        (f"{JOB_ID}/0:song.mp3", {"song.mp3": {"artifact": f"{JOB_ID}/0"}}),
        (f"songs/{JOB_ID}/:before", {"before": {"prefix": f"songs/{JOB_ID}/"}}),
        (f"songs/{JOB_ID}/", {JOB_ID: {"prefix": f"songs/{JOB_ID}/"}}),
    ],
)
def test_inputs(text: str, inputs: dict[str, Any]) -> None:
    found = {each.path: str(each.local) if each.local else dict(each.source) for each in input_files([text])}
    assert found == inputs


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gone", "there is no file or directory gone"),
        ("gone:a", "there is no file or directory gone"),
        ("odd:name", "'odd:name' may not be called so"),
        ("song.mp3:../a", "'../a' may not be called so"),
        ("song.mp3:/etc/passwd", "'/etc/passwd' may not be called so"),
        ("none", "'none/.hidden' may not be called so"),
        ("empty", "the directory empty is empty"),
        ("many", "33 files are too many, 32 may be uploaded"),
    ],
)
def test_inputs_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(typer.BadParameter, match=complaint):
        input_files([text])


@pytest.mark.parametrize(
    ("params", "spec", "options"),
    [
        ({}, {"command": ("train", "--x")}, {}),
        ({"as_args": True}, {"args": ("train", "--x")}, {}),
        ({"env": ["A=1=2", "B="]}, {"env": {"A": "1=2", "B": ""}}, {}),
        ({"secrets": ["TOKEN=hub"]}, {"secrets": {"TOKEN": "hub"}}, {}),
        ({"memory_mib": 1024, "disk_mib": 2048, "cpu": 0.5, "gpus": 1}, {"memory_mib": 1024, "gpus": 1}, {}),
        ({"retries": 2, "pool": "big"}, {"retries": 2, "pool": "big"}, {}),
        ({"writable_root": True}, {"writable_root": True}, {}),
        ({"lane": Lane.LOW, "timeout_s": 60, "labels": ["a=b"]}, {}, {"lane": Lane.LOW, "labels": {"a": "b"}}),
    ],
)
def test_what_is_said_is_what_is_sent(params: dict[str, Any], spec: dict[str, Any], options: dict[str, Any]) -> None:
    made, chosen = spec_of({**NOTHING, "image": IMAGE, **params}, [], ("train", "--x"))
    assert {name: getattr(made, name) for name in spec} == spec
    assert {name: getattr(chosen, name) for name in options} == options


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"image": "stems"}, "^image: must be written in full, registry/repository:tag or"),
        ({"image": f"{IMAGE}\n"}, "must be written in full"),
        ({"env": ["A"]}, "'A' is not NAME=VALUE"),
        ({"env": ["A B=1"]}, "env"),
        ({"env": ["A=1"], "secrets": ["A=hub"]}, "A is in env too"),
        ({"gpus": -1}, "gpus"),
        ({"timeout_s": 1}, "timeout_s"),
        ({"labels": ["a"]}, "NAME=VALUE"),
        ({"labels": ["a=b\nc"]}, "labels"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_sent(params: dict[str, Any], complaint: str) -> None:
    with pytest.raises(typer.BadParameter, match=complaint):
        spec_of({**NOTHING, "image": IMAGE, **params}, [], ())


@pytest.mark.parametrize(
    ("status", "run", "code"),
    [
        (JobStatus.SUCCEEDED, Run(exit_code=0), 0),
        (JobStatus.FAILED, Run(exit_code=7), 7),
        (JobStatus.FAILED, Run(exit_code=137), 137),
        (JobStatus.FAILED, Run(exit_code=0), 125),
        (JobStatus.FAILED, Run(), 125),
        (JobStatus.FAILED, None, 125),
        (JobStatus.CANCELED, None, 130),
        (JobStatus.CANCELED, Run(exit_code=143), 130),
    ],
)
def test_how_it_ends(status: JobStatus, run: Run | None, code: int) -> None:
    job = Job(
        id=JOB_ID,
        tenant="t",
        status=status,
        spec=GenerationSpec(prompt=""),
        pool="containers",
        lane=Lane.NORMAL,
        created_at=now(),
        run=run,
        error=JobError(code="container_failed", message="m"),
    )
    assert exit_code(job) == code


def test_every_field_can_be_written_as_an_argument() -> None:
    given = ContainerFields.__annotations__.keys()
    assert given == (ContainerSpec.model_fields.keys() | JobOptions.model_fields.keys()) - {"image", "command"}
    fields = {"image": IMAGE, "gpus": 1, "command": ["train"], "cpu": 2, "timeout_s": 60}
    assert ordered("/v1/containers", ContainerSpec, fields, None, "key").body == fields


def whole(log: GrowingLog, etag: str, text: bytes) -> tuple[str, ...]:
    call = log.whole()
    call.on_headers({"ETag": etag})
    return call.read(text)


def test_a_log_comes_in_pieces_and_another_attempts_from_its_start() -> None:
    log = GrowingLog("a")
    assert whole(log, '"1-9"', b"one\ntwo\nth") == ("one", "two")
    assert log.part({"attempt": 1, "start_bytes": 8, "text": "three\nfour"}) == ("three",), "a part of it was read"
    assert log.part({"attempt": 1, "start_bytes": 99, "text": "far\n"}) is None, "something before it was missed"
    assert log.part({"text": "one\n"}) is None, "of an older server"
    assert whole(log, 'W/"1-22"', b"one\ntwo\nthree\nfour\nfi") == ("four",)
    assert log.part({"attempt": 2, "start_bytes": 0, "text": "ä\n"}) == ("fi", "ä")
    assert log.part({"attempt": 1, "start_bytes": 22, "text": "ve\n"}) is None, "that attempt is over"
    assert log.part({"attempt": 3, "start_bytes": 5, "text": "late\n"}) is None
    assert whole(log, '"3-2"', b"\xff\n") == ("\N{REPLACEMENT CHARACTER}",)
    assert log.rest() == ()
