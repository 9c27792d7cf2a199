"""Both clients against a server that misbehaves in every way that a network has; against the gateway: test_up.py."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import serinette
from serinette.client import AsyncClient, Client, Retry
from serinette.client.batches import AsyncBatches
from serinette.client.calls import JobFields, ordered
from serinette.client.containers import AsyncContainers
from serinette.client.retries import RetryBudget, TransientError, retry_after_s
from serinette.client.songs import AsyncSong, Song
from serinette.client.sync import Batches, Containers
from serinette.errors import (
    ConfigurationError,
    GenerationError,
    GpuTimeSpent,
    InvalidSpec,
    JobTimeout,
    NotFinished,
    NotFound,
    SerinetteError,
    Unavailable,
)
from serinette.job import Artifact, Job, JobOptions, JobStatus, Result, Sampling, Timings, Upload, now
from serinette.names import Lane
from serinette.spec import AudioFormat, GenerationSpec
from tests.servers import free_ports
from tests.unit.answering import CLIENTS, QUICK, Answer, Server, answering, either, problem

SPEC = GenerationSpec(prompt="jazz")
LOST = Unavailable("lost")


def job_json(status: JobStatus = JobStatus.QUEUED) -> dict[str, Any]:
    job = Job(
        id="a", tenant="t", status=status, spec=SPEC, pool="default", lane=Lane.NORMAL, created_at=now(), timeout_s=60
    )
    return {**job.model_dump(mode="json"), "a_field_of_tomorrow": 1}


def a_result(sha256: str) -> Result:
    artifact = Artifact(
        index=0,
        key="k",
        seed=7,
        format=AudioFormat.MP3,
        content_type="audio/mpeg",
        size_bytes=6,
        sha256=sha256,
        duration_s=1,
        sample_rate=48_000,
        channels=2,
    )
    return Result(
        artifacts=(artifact,),
        model="m",
        model_revision="r",
        sampling=Sampling(steps=8, guidance_scale=1, shift=3, turbo=True),
        timings=Timings(queue_s=0, generate_s=0, encode_s=0, upload_s=0, run_s=0),
    )


@pytest.fixture
def server() -> Iterator[Server]:
    with answering() as server:
        yield server


@pytest.fixture(params=CLIENTS)
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    with either(request.param, server.url + "/") as client:
        yield client


def test_a_submit_says_only_what_was_asked_for(server: Server, client: Any) -> None:
    server.answers = [Answer(202, json.dumps(job_json()))]
    assert client.submit(SPEC, idempotency_key="mine").status is JobStatus.QUEUED
    ((method, path, body, headers),) = server.requests
    assert (method, path, json.loads(body)) == ("POST", "/v1/jobs", {"prompt": "jazz"})
    assert headers["Idempotency-Key"] == "mine"


def test_a_problem_is_the_error_that_it_names(server: Server, client: Any) -> None:
    server.answers = [
        problem(404, code="not_found", detail="there is no job a"),
        problem(422, code="invalid_spec", detail="duration_s: too long", field="duration_s"),
    ]
    with pytest.raises(NotFound, match="there is no job a"):
        client.get("a")
    with pytest.raises(InvalidSpec) as caught:
        client.submit(SPEC)
    assert caught.value.field == "duration_s"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(502, "<html>Bad gateway</html>"), Unavailable),
        (Answer(503, "[]"), Unavailable),
        (Answer(418, "teapot"), SerinetteError),
        (problem(500, code=7), SerinetteError),
    ],
)
def test_an_answer_of_another_server_is_reported_with_its_status(
    server: Server, client: Any, answer: Answer, kind: type[SerinetteError]
) -> None:
    server.answers = [answer]
    with pytest.raises(kind, match=f"{server.url}/v1/jobs/a answered {answer.status}") as caught:
        client.get("a")
    assert type(caught.value) is kind


def test_an_answer_that_is_no_job_is_an_error(server: Server, client: Any) -> None:
    server.answers = [Answer(200, "<html>Welcome to your router</html>")]
    with pytest.raises(SerinetteError, match="is that a Serinette"):
        client.get("a")


def test_words_and_fields_of_a_newer_server_are_no_error(server: Server, client: Any) -> None:
    worker = {"name": "w", "stage": "hibernating", "slots": 1, "busy_slots": 0, "device": "", "model": None}
    worker |= {"message": "", "cold_start": {"thaw_s": 1}, "started_at": now().isoformat(), "mood": "sleepy"}
    words = {"brake": [], "waiting_for": "its thaw", "waiting_code": "thaw"}
    unknown = dict.fromkeys(("model", "min_workers", "max_workers", "pods"))
    pools = [{"name": "default", "waiting": 2, "workers": [worker], **words, **unknown}]
    server.answers = [Answer(200, json.dumps({"pools": pools, "as_of": "tomorrow"}))]
    (pool,) = client.workers().pools
    assert (pool.waiting_code, pool.workers[0].stage) == ("thaw", "hibernating")


def test_no_server_there_says_how_to_start_one() -> None:
    with (
        Client(f"http://127.0.0.1:{free_ports(1)[0]}", retry=Retry(unanswered=False)) as client,
        pytest.raises(Unavailable, match="serinette up"),
    ):
        client.queue()


def test_events_are_read_to_the_end(server: Server, client: Any) -> None:
    events = [{"id": "1-0", "type": "status", "data": {"prompt": "雨"}}, {"id": "2-0", "type": "failed", "data": {}}]
    lines = [f"id: {event['id']}\r\nevent: {event['type']}\r\ndata: {json.dumps(event)}\r\n\r\n" for event in events]
    server.answers = [Answer(200, ": ping\r\n\r\n" + "retry: 2000\r\n".join(lines)), Answer(204)]
    assert [(event.id, event.type, event.data) for event in client.events("a")] == [
        ("1-0", "status", {"prompt": "雨"}),
        ("2-0", "failed", {}),
    ]
    assert list(client.events("a", last_event_id="2-0")) == []
    assert "Last-Event-ID" not in server.requests[0][3]
    assert server.requests[-1][3]["Last-Event-ID"] == "2-0"


def test_a_gateway_that_is_away_for_a_while_is_waited_for(server: Server, client: Any) -> None:
    server.answers = [
        Answer(200, json.dumps(job_json(JobStatus.RUNNING))),
        Answer(503),
        Answer(502),
        Answer(200, json.dumps(job_json(JobStatus.FAILED))),
    ]
    seen = [job.status for job in client.watch("a", poll_s=0)]
    assert seen == [JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.FAILED]


def test_patience_ends(server: Server, client: Any) -> None:
    server.answers = [Answer(200, json.dumps(job_json(JobStatus.RUNNING))), Answer(503)]
    with pytest.raises(Unavailable):
        list(client.watch("a", poll_s=0.01, patience_s=0.1))


def test_a_wait_can_be_bounded(server: Server, client: Any) -> None:
    server.answers = [Answer(200, json.dumps(job_json()))]
    with pytest.raises(NotFinished, match=r"still queued after 0\.1 s"):
        client.wait("a", timeout_s=0.1)


def test_a_song_is_written_whole_or_not_at_all(server: Server, client: Any, tmp_path: Path) -> None:
    song = tmp_path / "song.mp3"
    server.answers = [Answer(200, "half a so", cut_short=True)]
    with pytest.raises(Unavailable):
        client.download("a", song)
    assert list(tmp_path.iterdir()) == []
    server.answers = [Answer(200, "half a so", cut_short=True), Answer(200, "a song")]
    assert client.download("a", song) == 6
    server.answers = [Answer(307, headers={"Location": "/elsewhere"}), Answer(200, "a song")]
    assert client.download("a", song, index=1) == 6
    assert [path for _, path, _, _ in server.requests[-2:]] == ["/v1/jobs/a/audio?index=1", "/elsewhere"]
    assert [path.name for path in tmp_path.iterdir()] == ["song.mp3"]


def test_a_song_goes_into_a_pipe_whole_and_takes_nothings_place(server: Server, client: Any, tmp_path: Path) -> None:
    """As root a song would else take the place of /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    server.answers = [Answer(200, "half a so", cut_short=True), Answer(200, "a song")]
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert client.download("a", pipe) == 6
    assert pipe.is_fifo()
    assert os.read(reader, 100) == b"a song"
    os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize(
    "first",
    [
        Answer(503),
        Answer(502, "<html>Bad gateway</html>"),
        problem(429, code="rate_limited", detail="too many requests"),
        Answer(202, json.dumps(job_json()), cut_short=True),  # taken, and the answer lost
    ],
)
def test_a_submit_is_tried_again_under_one_key(server: Server, client: Any, first: Answer) -> None:
    server.answers = [first, Answer(202, json.dumps(job_json()))]
    client.submit("jazz", duration_s=15, lane="high", labels={"album": "blue"})
    one, two = server.requests
    assert one[2] == two[2]
    assert json.loads(one[2]) == {"prompt": "jazz", "duration_s": 15, "lane": "high", "labels": {"album": "blue"}}
    assert one[3]["Idempotency-Key"] == two[3]["Idempotency-Key"]
    server.answers = [Answer(202, json.dumps(job_json()))]
    client.submit("jazz")
    assert server.requests[-1][3]["Idempotency-Key"] != one[3]["Idempotency-Key"]


def test_what_cannot_be_repeated_is_not(server: Server, client: Any) -> None:
    server.answers = [Answer(204, cut_short=True), Answer(204)]
    server.answers[0].status = 200
    with pytest.raises(Unavailable):
        client.erase("a")
    assert len(server.requests) == 1
    server.answers = [Answer(503), Answer(204)]  # here nothing was done
    client.erase("a")
    assert len(server.requests) == 3


def test_a_pause_longer_than_patience_is_reported_instead(server: Server, client: Any) -> None:
    server.answers = [
        Answer(429, problem(429, code="gpu_time_spent", detail="spent").body, {"Retry-After": "3600"}),
    ]
    with pytest.raises(GpuTimeSpent) as caught:
        client.submit("jazz")
    assert caught.value.retry_after_s == 3600
    assert len(server.requests) == 1


def test_a_wrong_field_is_named_before_anything_is_sent(server: Server, client: Any) -> None:
    with pytest.raises(InvalidSpec, match="duration_s"):
        client.submit("jazz", duration_s=0.5)
    with pytest.raises(InvalidSpec, match="tempo"):
        client.submit("jazz", tempo=90)
    assert server.requests == []


def test_events_that_break_off_go_on_behind_the_last(server: Server, client: Any) -> None:
    def stream(*events: tuple[str, str]) -> str:
        return "".join(f"data: {json.dumps({'id': i, 'type': t, 'data': {}})}\n\n" for i, t in events)

    server.answers = [
        Answer(200, stream(("1-0", "status"), ("2-0", "progress"))),  # the gateway leaves
        Answer(200, stream(("2-0", "status"), ("3-0", "progress")), cut_short=True),
        Answer(503),
        Answer(200, stream(("3-0", "status"), ("4-0", "succeeded"))),
    ]
    assert [event.id for event in client.events("a")] == ["1-0", "2-0", "2-0", "3-0", "3-0", "4-0"]
    assert [headers.get("Last-Event-ID") for *_, headers in server.requests] == [None, "2-0", "3-0", "3-0"]


def test_a_damaged_song_is_not_kept(server: Server, client: Any, tmp_path: Path) -> None:
    job = Job.model_validate_json(json.dumps(job_json(JobStatus.SUCCEEDED))).model_copy(
        update={"result": a_result(sha256="0" * 64)}
    )
    server.answers = [Answer(200, "another song")]
    with pytest.raises(SerinetteError, match="damaged"):
        client.download(job, tmp_path / "song.mp3")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_sent_whole_also_the_second_time(server: Server, client: Any, tmp_path: Path) -> None:
    (tmp_path / "hum.wav").write_bytes(b"hum" * 50_000)
    known = Upload(
        id="upload-1",
        duration_s=1,
        sample_rate=1,
        channels=1,
        codec="c",
        container="w",
        size_bytes=1,
        sha256="",
        created_at=now(),
    )
    server.answers = [Answer(503), Answer(201, known.model_dump_json())]
    assert client.upload(tmp_path / "hum.wav").id == "upload-1"
    assert client.upload(b"hum").id == "upload-1"
    assert [len(body) for _, _, body, _ in server.requests] == [150_000, 150_000, 3]


@pytest.mark.parametrize("url", ["localhost:8019", "ftp://host", "http://", "http://host:port", ""])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_url_that_is_none_is_named_at_once(kind: type[Client], url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no URL"):
        kind(url)


def test_every_field_can_be_written_as_an_argument() -> None:
    given = JobFields.__annotations__.keys()
    assert given == (GenerationSpec.model_fields.keys() | JobOptions.model_fields.keys()) - {"prompt"}
    fields = {"prompt": "jazz", "bpm": 90, "lane": "low"}
    assert ordered("/v1/jobs", GenerationSpec, fields, JobOptions(lane=Lane.HIGH), None).body == fields


@pytest.mark.parametrize(
    ("retry", "error", "repeatable", "answered", "pauses"),
    [
        (Retry(patience_s=10, first_s=1, longest_s=4), TransientError(LOST), True, True, [1, 2, 4]),
        (Retry(patience_s=10, first_s=1, longest_s=4), TransientError(LOST, asked_s=5), True, True, [5, 5]),
        (Retry(patience_s=10), TransientError(LOST, asked_s=11), True, True, []),
        (Retry(patience_s=0), TransientError(LOST), True, True, []),
        (Retry(), TransientError(LOST, perhaps_done=True), False, True, []),
        (Retry(unanswered=False), TransientError(LOST), True, False, []),
    ],
)
def test_patience(retry: Retry, error: TransientError, repeatable: bool, answered: bool, pauses: list[float]) -> None:
    clock = [100.0]
    patience = RetryBudget(retry, repeatable=repeatable, clock=lambda: clock[0], draw=lambda: 1.0)
    seen: list[float] = []
    with pytest.raises(Unavailable):
        while len(seen) < 20:
            seen.append(patience.pause_s(error, answered=answered))
            clock[0] += seen[-1]
    assert seen == pauses


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7),
        ("-1", 0),
        ("soon", None),
        ("9" * 400, None),
        ("9" * 5_000, None),
        ("Sun, 22 Nov 99999999999999999999 12:00:30 GMT", None),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, datetime(2026, 11, 22, 12, tzinfo=UTC)) == seconds


def test_what_the_one_client_awaits_the_other_does() -> None:
    for awaited, waiting in ((AsyncClient, Client), (AsyncBatches, Batches), (AsyncContainers, Containers)):
        methods = {name for name in vars(awaited) if not name.startswith("_")} - {"fetch"}
        assert methods == {name for name in vars(waiting) if not name.startswith("_")}
        for name in methods:
            assert getattr(waiting, name).__doc__ == getattr(awaited, name).__doc__


def test_an_iteration_that_is_left_lets_go_of_its_connection(server: Server) -> None:
    server.answers = [Answer(200, 'data: {"id": "1-0", "type": "status", "data": {}}\n\n', cut_short=True)]
    with Client(server.url, retry=QUICK) as client:
        events: Any = client.events("a")
        assert next(events).id == "1-0"
        events.close()
        server.answers = [Answer(200, json.dumps(job_json()))]
        assert client.get("a").status is JobStatus.QUEUED


def test_importing_the_package_loads_neither_httpx_nor_pydantic() -> None:
    code = "import sys, serinette; sys.exit(', '.join({'httpx', 'pydantic', 'asyncio'} & sys.modules.keys()) or 0)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_every_public_name_is_there() -> None:
    assert set(dir(serinette)) == set(serinette.__all__)
    assert all(getattr(serinette, name) is not None for name in serinette.__all__)
    with pytest.raises(AttributeError):
        serinette.nothing  # noqa: B018


def generated(url: str, kind: str, monkeypatch: pytest.MonkeyPatch, path: Path) -> Path:
    """One call from a prompt to a file, waiting or awaited, of the gateway that the environment names."""
    monkeypatch.setenv("SERINETTE_URL", f"{url}/")
    monkeypatch.setenv("SERINETTE_API_KEY", " srn_of_the_environment\n")  # as `cat` has it out of a file
    if kind == "Client":
        return serinette.generate("jazz", duration_s=1).save(path)

    async def awaited() -> Path:
        song = await serinette.generate_async("jazz", duration_s=1)
        return await song.save(path)

    return asyncio.run(awaited())


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_song_in_one_call_by_the_environment(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    song = "a song"
    done = job_json() | {"status": "succeeded", "result": a_result(sha256(song.encode()).hexdigest()).model_dump()}
    with answering() as server:
        server.answers = [Answer(201, json.dumps(job_json())), Answer(200, json.dumps(done)), Answer(200, song)]
        assert generated(server.url, kind, monkeypatch, tmp_path / "song.mp3").read_text() == song
        finished = Job.model_validate(done)
        for named in (Song(finished), AsyncSong(finished)):
            assert named.url() == f"{server.url}/v1/jobs/a/audio?index=0"
        assert [request[1].partition("?")[0] for request in server.requests] == [
            "/v1/jobs",
            "/v1/jobs/a",
            "/v1/jobs/a/audio",
        ]
        keys = {request[3]["Authorization"] for request in server.requests}
        assert keys == {"Bearer srn_of_the_environment"}


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_song_is_not_saved_under_another_formats_name(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = job_json() | {"status": "succeeded", "result": a_result("0" * 64).model_dump()}
    with answering() as server:
        server.answers = [Answer(201, json.dumps(job_json())), Answer(200, json.dumps(done))]
        with pytest.raises(InvalidSpec, match=r"the song is mp3, so save it as \.mp3"):
            generated(server.url, kind, monkeypatch, tmp_path / "song.FLAC")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_key_that_is_none_is_refused_at_once_and_not_repeated(make: Any) -> None:
    for key in ("srn_a\nb", "srn_ключ", "Bearer srn_x"):
        with pytest.raises(ConfigurationError, match="the API key has characters") as refused:
            make("http://localhost:1", api_key=key)
        assert key not in str(refused.value)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    ("ended", "error", "words"),
    [
        ({"status": "failed", "error": {"code": "timeout", "message": "it ran too long"}}, JobTimeout, "it ran too"),
        ({"status": "canceled"}, GenerationError, "canceled"),
    ],
)
def test_a_song_in_one_call_raises_on_failure(
    kind: str,
    ended: dict[str, Any],
    error: type[Exception],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with answering() as server:
        server.answers = [Answer(201, json.dumps(job_json())), Answer(200, json.dumps(job_json() | ended))]
        with pytest.raises(error, match=words):
            generated(server.url, kind, monkeypatch, tmp_path / "song.mp3")
    assert list(tmp_path.iterdir()) == []


def test_what_is_given_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINETTE_URL", "http://127.0.0.1:1")
    with answering() as server, Client(server.url, api_key="srn_given") as client:
        server.answers = [Answer(200, json.dumps(job_json()))]
        client.get("a")
        assert server.requests[0][3]["Authorization"] == "Bearer srn_given"


def test_a_song_says_where_it_is() -> None:
    artifact = a_result("0" * 64).artifacts[0].model_copy(update={"key": "songs/default/the-job/attempt-0.mp3"})
    assert artifact.model_dump()["url"] == artifact.url == "/v1/jobs/the-job/audio?index=0"
