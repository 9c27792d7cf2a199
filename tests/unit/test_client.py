"""The client against a server that misbehaves in every way that a network has; against the gateway: test_up.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from serinette.client import Client
from serinette.errors import InvalidSpec, NotFinished, NotFound, SerinetteError, Unavailable
from serinette.job import Job, JobStatus, now
from serinette.names import Lane
from serinette.spec import GenerationSpec
from tests.servers import free_ports

SPEC = GenerationSpec(prompt="jazz")


def job_json(status: JobStatus = JobStatus.QUEUED) -> str:
    job = Job(
        id="a", tenant="t", status=status, spec=SPEC, pool="default", lane=Lane.NORMAL, created_at=now(), timeout_s=60
    )
    return json.dumps({**job.model_dump(mode="json"), "a_field_of_tomorrow": 1})


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

    do_GET = do_POST = answer  # noqa: N815  # the library's names

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server([])
    thread = Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url + "/") as client:
        yield client


def problem(status: int, **fields: object) -> Answer:
    return Answer(
        status, json.dumps({"status": status, "title": "", **fields}), {"Content-Type": "application/problem+json"}
    )


def test_a_submit_says_only_what_was_asked_for(server: Server, client: Client) -> None:
    server.answers = [Answer(202, job_json())]
    assert client.submit(SPEC, idempotency_key="mine").status is JobStatus.QUEUED
    ((method, path, body, headers),) = server.requests
    assert (method, path, json.loads(body)) == ("POST", "/v1/jobs", {"prompt": "jazz"})
    assert headers["Idempotency-Key"] == "mine"


def test_a_problem_is_the_error_that_it_names(server: Server, client: Client) -> None:
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
def test_an_answer_of_somebody_else_tells_its_status(
    server: Server, client: Client, answer: Answer, kind: type[SerinetteError]
) -> None:
    server.answers = [answer]
    with pytest.raises(kind, match=f"{server.url}/v1/jobs/a answered {answer.status}") as caught:
        client.get("a")
    assert type(caught.value) is kind


def test_an_answer_that_is_no_job_is_told(server: Server, client: Client) -> None:
    server.answers = [Answer(200, "<html>Welcome to your router</html>")]
    with pytest.raises(SerinetteError, match="is that a Serinette"):
        client.get("a")


def test_nobody_there_says_how_to_start_one() -> None:
    with Client(f"http://127.0.0.1:{free_ports(1)[0]}") as client, pytest.raises(Unavailable, match="serinette up"):
        client.queue()


def test_events_are_read_to_the_end(server: Server, client: Client) -> None:
    events = [{"id": "1-0", "type": "status", "data": {"prompt": "雨"}}, {"id": "2-0", "type": "failed", "data": {}}]
    lines = [f"id: {event['id']}\r\nevent: {event['type']}\r\ndata: {json.dumps(event)}\r\n\r\n" for event in events]
    server.answers = [Answer(200, ": ping\r\n\r\n" + "retry: 2000\r\n".join(lines)), Answer(204)]
    assert [(event.id, event.type, event.data) for event in client.events("a")] == [
        ("1-0", "status", {"prompt": "雨"}),
        ("2-0", "failed", {}),
    ]
    assert list(client.events("a", last_event_id="2-0")) == []
    assert server.requests[-1][3]["Last-Event-ID"] == "2-0"


def test_a_gateway_that_is_away_for_a_while_is_waited_for(server: Server, client: Client) -> None:
    server.answers = [
        Answer(200, job_json(JobStatus.RUNNING)),
        Answer(503),
        Answer(502),
        Answer(200, job_json(JobStatus.FAILED)),
    ]
    seen = [job.status for job in client.watch("a", poll_s=0)]
    assert seen == [JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.FAILED]


def test_patience_ends(server: Server, client: Client) -> None:
    server.answers = [Answer(200, job_json(JobStatus.RUNNING)), Answer(503)]
    with pytest.raises(Unavailable):
        list(client.watch("a", poll_s=0.01, patience_s=0.1))


def test_a_wait_can_be_bounded(server: Server, client: Client) -> None:
    server.answers = [Answer(200, job_json())]
    with pytest.raises(NotFinished, match=r"still queued after 0\.1 s"):
        client.wait("a", timeout_s=0.1)


def test_a_song_is_written_whole_or_not_at_all(server: Server, client: Client, tmp_path: Path) -> None:
    song = tmp_path / "song.mp3"
    server.answers = [Answer(200, "half a so", cut_short=True)]
    with pytest.raises(Unavailable):
        client.download("a", song)
    assert list(tmp_path.iterdir()) == []
    server.answers = [Answer(307, headers={"Location": "/elsewhere"}), Answer(200, "a song")]
    assert client.download("a", song, index=1) == 6
    assert [path for _, path, _, _ in server.requests[-2:]] == ["/v1/jobs/a/audio?index=1", "/elsewhere"]
    assert [path.name for path in tmp_path.iterdir()] == ["song.mp3"]
