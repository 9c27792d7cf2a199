"""`serinette up` and the commands that talk to it, with every real part."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from serinette.checkpoints import CheckpointFiles, note_files
from serinette.client import Client
from serinette.errors import Conflict, IdempotencyConflict, InvalidSpec, NotFound, Unavailable
from serinette.job import JobOptions, JobStatus
from serinette.local import Local, LocalOptions, worker_devices
from serinette.spec import AudioFormat, GenerationSpec
from serinette.supervisor import Notice, Phase
from tests.processes import eventually, eventually_gone
from tests.servers import free_ports
from tests.up import ENVIRONMENT, SINES, Up, run_cli

SHORT = GenerationSpec(prompt="jazz piano", duration_s=3, format=AudioFormat.FLAC)
ENDLESS = GenerationSpec(prompt="until never", duration_s=3)  # to an engine of sines


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A short path: sockets are created in it, and the directories of pytest nest deep."""
    path = Path(tempfile.mkdtemp(prefix="up-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def up(directory: Path) -> Iterator[Up]:
    running = Up.start(directory / "ü my C#%41?='", environment=SINES)  # any path is a path
    yield running
    running.clean_up()


@pytest.fixture
def client(up: Up) -> Iterator[Client]:
    with Client(up.url) as client:
        yield client


def test_a_song_from_the_command_line(up: Up, tmp_path: Path) -> None:
    song = tmp_path / "a song #1, 50%41 é?.mp3"
    ended = run_cli("submit", "jazz piano", "-d", "3", "-o", str(song), "--label", "album=blue", "--server", up.url)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{song}\n"
    assert "jazz piano: succeeded" in ended.stderr
    assert song.read_bytes()[:3] == b"ID3"
    assert [path.name for path in tmp_path.iterdir()] == [song.name]


def test_a_song_in_a_pipe_is_json(up: Up, tmp_path: Path) -> None:
    ended = run_cli(
        "submit",
        "rain",
        "-d",
        "3",
        "-n",
        "2",
        "--format",
        "ogg",
        "--seed",
        "7",
        "--json",
        "--server",
        up.url,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    job = json.loads(ended.stdout)
    assert job["status"] == "succeeded"
    assert [artifact["seed"] for artifact in job["result"]["artifacts"]] == [7, 8]
    assert [(tmp_path / name).read_bytes()[:4] for name in job["files"]] == [b"OggS", b"OggS"]


def test_jobs_are_listed(up: Up, client: Client) -> None:
    job = client.submit(SHORT, JobOptions(labels={"album": "listed"}))
    client.wait(job.id, timeout_s=120)
    plain = run_cli("jobs", "--server", up.url)
    assert plain.stdout.splitlines()[0].split("\t")[0::3] == [job.id, "jazz piano"]
    listed = run_cli("jobs", "--label", "album=listed", "--json", "--server", up.url)
    assert [entry["id"] for entry in json.loads(listed.stdout)] == [job.id]
    assert run_cli("jobs", "--status", "failed", "--server", up.url).stdout == ""


def test_the_queue_is_shown(up: Up) -> None:
    plain = run_cli("queue", "--server", up.url)
    assert [line.split("\t")[:3] for line in plain.stdout.splitlines()] == [
        ["default", "high", "0"],
        ["default", "normal", "0"],
        ["default", "low", "0"],
    ]
    assert "workers: 1" in plain.stderr
    shown = json.loads(run_cli("queue", "--json", "--server", up.url).stdout)
    assert shown["pools"][0]["workers"][0]["stage"] == "ready"


def test_a_running_job_is_canceled(up: Up, client: Client) -> None:
    job_id = run_cli("submit", ENDLESS.prompt, "--no-wait", "--server", up.url).stdout.strip()
    assert eventually(lambda: client.get(job_id).status is JobStatus.RUNNING)
    ended = run_cli("cancel", job_id, "--server", up.url)
    assert ended.returncode == 0, ended.stderr
    assert client.wait(job_id, timeout_s=120).status is JobStatus.CANCELED
    followed = run_cli("watch", job_id, "--server", up.url)
    assert followed.returncode == 1
    assert f"job {job_id} canceled" in followed.stderr


def test_events_report_the_stages_of_a_song(client: Client) -> None:
    job = client.submit(SHORT)
    events = list(client.events(job.id))
    types = [event.type for event in events]
    assert types[0] == "status"
    assert types[-1] == "succeeded"
    assert "progress" in types
    middle = next(event.id for event in events if event.type == "progress")
    rest = list(client.events(job.id, last_event_id=middle))
    assert rest[-1].id == events[-1].id


def test_errors_come_back_as_themselves(up: Up, client: Client) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(NotFound):
        client.get(unknown)
    with pytest.raises(InvalidSpec):
        client.submit(GenerationSpec(prompt="jazz", model="no-such-model"))
    job = client.submit(SHORT, idempotency_key="once")
    assert client.submit(SHORT, idempotency_key="once").id == job.id
    with pytest.raises(IdempotencyConflict):
        client.submit(GenerationSpec(prompt="another"), idempotency_key="once")
    client.wait(job.id, timeout_s=120)
    with pytest.raises(Conflict):
        client.cancel(job.id)
    ended = run_cli("cancel", unknown, "--server", up.url)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert unknown in ended.stderr


def test_a_second_one_says_what_is_in_its_way(up: Up, directory: Path) -> None:
    port = up.url.rpartition(":")[2]
    same_directory = run_cli("up", "--port", "0", "--data-dir", str(up.data_dir))
    assert same_directory.returncode == 1
    assert f"process {up.process.pid}, {up.url}" in same_directory.stderr
    assert "--data-dir" in same_directory.stderr
    same_port = run_cli("up", "--port", port, "--data-dir", str(directory / "other"))
    assert same_port.returncode == 1
    assert f"port {port} on 127.0.0.1 is taken" in same_port.stderr
    assert "--port" in same_port.stderr


def test_no_other_user_can_reach_the_queue(up: Up) -> None:
    listening = {
        connection.laddr.ip
        for process in up.family()
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    }
    assert listening == {"127.0.0.1"}
    assert not up.child("valkey-server").net_connections("inet")
    assert (up.data_dir / "valkey.sock").stat().st_mode & 0o077 == 0


def test_the_doctor_finds_it_without_a_url(up: Up, directory: Path) -> None:
    url, here = up.url, directory / "here"
    here.mkdir()
    (here / "serinette-data").symlink_to(up.data_dir)
    ended = run_cli("doctor", "--json", cwd=here)
    report = json.loads(ended.stdout)
    found = {(each["part"], each["check"]): (each["level"], each["message"]) for each in report["findings"]}
    assert {part for part, _ in found} == {"up", "disk", "gpu", "checkpoint", "queue", "store"}
    assert found["up", "running"] == ("ok", f"process {up.process.pid}, {url}, in {here / 'serinette-data'}")
    assert found["up", "gateway"] == ("ok", f"{url} is ready")
    assert found["up", "workers"][1].startswith("1 of 1 ready: sine on ")
    assert found["queue", "synced"][0] == found["store", "create once"][0] == "ok"
    assert "bundled" in found["checkpoint", "whole"][1]
    assert (ended.returncode, report["healthy"]) == (0, True)


def test_valkey_dies_and_no_song_is_lost(up: Up, client: Client) -> None:
    jobs = [client.submit(SHORT) for _ in range(3)]
    valkey = up.child("valkey-server")
    valkey.kill()
    assert [client.wait(job.id, timeout_s=150).status for job in jobs] == [JobStatus.SUCCEEDED] * 3
    assert up.child("valkey-server").pid != valkey.pid
    assert "valkey       was killed by SIGKILL" in up.output


def test_the_gateway_and_the_controller_die_and_come_back(up: Up, client: Client) -> None:
    killed = [up.child("api"), up.child("controller")]
    for process in killed:
        process.kill()
    assert eventually_gone(killed)
    assert eventually(lambda: up.output.count("started again") >= 2)
    assert eventually(lambda: _answers(client))
    job_id = client.submit(SHORT).id
    assert client.wait(job_id, timeout_s=120).status is JobStatus.SUCCEEDED


def _answers(client: Client) -> bool:
    try:
        client.queue()
    except Unavailable:
        return False
    return True


def test_interrupted_it_ends_everything(up: Up) -> None:
    assert up.url
    family = up.family()
    assert len(family) >= 8  # itself, Valkey, gateway, controller, worker, engine, two slots
    assert up.end(signal.SIGINT) == 0
    assert eventually_gone(family)
    assert up.output.endswith("Ended.\n")
    with socket.create_server(("127.0.0.1", int(up.url.rpartition(":")[2]))):  # the port is free again
        pass


@pytest.fixture
def lonely(directory: Path) -> Iterator[Up]:
    running = Up.start(directory / "lonely", environment=SINES)
    yield running
    running.clean_up()


def test_killed_outright_it_leaves_nothing_and_loses_nothing_and_asked_twice_it_ends_at_once(lonely: Up) -> None:
    with Client(lonely.url) as client:
        job_id = client.submit(ENDLESS).id
        assert eventually(lambda: client.get(job_id).status is JobStatus.RUNNING)
        waiting_id = client.submit(SHORT).id
    family = lonely.family()
    assert len(family) >= 8
    lonely.end(signal.SIGKILL)
    assert eventually_gone(family)

    again = Up.start(lonely.data_dir, "--drain-timeout", "600", environment=SINES)
    try:
        with Client(again.url) as client:
            assert client.cancel(job_id).cancel_requested
            assert client.wait(waiting_id, timeout_s=150).status is JobStatus.SUCCEEDED
            assert client.wait(job_id, timeout_s=150).status is JobStatus.CANCELED
            held_id = client.submit(ENDLESS).id
            assert eventually(lambda: client.get(held_id).status is JobStatus.RUNNING)
        family = again.family()
        again.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: "asked to leave" in (again.data_dir / "logs/worker.log").read_text())
        assert again.process.poll() is None  # the song may still take 10 minutes
        assert again.end(signal.SIGINT) == 0
        assert eventually_gone(family)
    finally:
        again.clean_up()


def test_killed_while_it_starts_it_leaves_nothing(directory: Path) -> None:
    """And it shows what has come of a checkpoint, by what its worker noted."""
    data_dir = directory / "starting"
    files = CheckpointFiles(
        model="owner/music", directory=data_dir / "blobs", incoming=data_dir / "in", sizes_bytes={"a": 14_000_000}
    )
    note_files(data_dir / "work" / "checkpoints", files)
    starting = Up.start(data_dir, "--model", "owner/music", environment=SINES)
    try:
        assert eventually(lambda: "worker: starting, 0 of 14 MB have come" in starting.output, 60), starting.output
        assert eventually(lambda: len(starting.family()) >= 5)  # the worker at least has been started
        family = starting.family()
        starting.end(signal.SIGKILL)
        assert eventually_gone(family)
    finally:
        starting.clean_up()


def test_a_model_that_is_not_there_shows_why_and_leaves_the_others_up(directory: Path) -> None:
    lacking = Up.start(directory / "lacking", "--model", str(directory / "nowhere"))
    try:
        assert httpx.get(f"{lacking.url}/readyz").status_code == 200
        assert "nowhere: no such directory" in lacking.output, "the worker's last lines"
        assert re.search(r"worker +ended with status 78 before it was ready; starts again in", lacking.output)
        with Client(lacking.url) as client:
            job = client.submit(SHORT)
            assert eventually(lambda: client.get(job.id).waiting_code == "configuration", 60)
            assert "nowhere" not in (client.get(job.id).waiting_for or ""), "a path is its operator's"
        doctor = run_cli("doctor", "--data-dir", str(lacking.data_dir))
        assert (doctor.returncode, doctor.stdout.count("✗")) == (1, 2), doctor.stdout
        assert re.search(
            r"up: workers none is ready, after \d+ failed starts: model .*nowhere: no such d", doctor.stdout
        )
        assert "checkpoint: whole " in doctor.stdout
        assert lacking.end() == 0
        after = run_cli("doctor", "--data-dir", str(lacking.data_dir))
        assert "! up: running nothing runs in " in after.stdout
    finally:
        lacking.clean_up()


def test_workers_on_this_machine_and_from_another(directory: Path) -> None:
    two = Up.start(directory / "two", "--device", "cpu", "--workers", "2", environment=SINES)
    try:
        assert _stages(two.url) == ["ready", "ready"]
        assert "worker-0" in two.output
        assert "worker-1" in two.output
        command = ["worker", "--redis-url", f"unix://{two.data_dir}/valkey.sock"]
        refused = run_cli(*command, "--data-dir", str(directory / "joined"))
        assert (refused.returncode, "SERINETTE_STORE_URL" in refused.stderr) == (1, True)
        store = {"SERINETTE_STORE_URL": (two.data_dir / "store").as_uri()}
        joined = Up.start(directory / "joined", command=command, environment=SINES | store)
        try:
            assert eventually(lambda: "1 worker waits for jobs" in joined.output, 60), joined.output
            assert _stages(two.url) == ["ready"] * 3
            assert joined.end() == 0
            assert eventually(lambda: _stages(two.url) == ["ready"] * 2, 20)
        finally:
            joined.clean_up()
    finally:
        two.clean_up()


def _stages(url: str) -> list[str]:
    (pool,) = httpx.get(f"{url}/v1/workers").json()["pools"]
    return [worker["stage"] for worker in pool["workers"]]


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "devices"),
    [
        (None, None, 0, ("auto",)),
        (None, None, 1, ("auto",)),
        (None, None, 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("auto", 3, 2, ("cuda:0", "cuda:1", "cuda:0")),
        (None, 2, 0, ("auto", "auto")),
        ("cpu", None, 2, ("cpu",)),
        ("cuda:1, cuda:3", None, 4, ("cuda:1", "cuda:3")),
        (",", 2, 0, ("auto", "auto")),
    ],
)
def test_each_device_has_a_worker(device: str | None, workers: int | None, gpus: int, devices: tuple[str, ...]) -> None:
    assert worker_devices(device, workers, gpus) == devices


def test_a_directory_that_cannot_be_used_is_named(directory: Path) -> None:
    (directory / "file").write_text("")
    assert "--data-dir" in run_cli("up", "--port", "0", "--data-dir", str(directory / "file")).stderr
    deep = directory / ("a" * 100)
    assert "too long" in run_cli("up", "--port", "0", "--data-dir", str(deep)).stderr


def test_a_host_that_is_not_ours_is_named(directory: Path) -> None:
    ended = run_cli("up", "--host", "192.0.2.1", "--port", "0", "--data-dir", str(directory / "host"))
    assert ended.returncode == 1
    assert "--host" in ended.stderr


def test_a_wrong_setting_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "SERINETTE_HEARTBEAT_S", "often")
    ended = run_cli("up", "--port", "0", "--data-dir", str(directory / "wrong"))
    assert ended.returncode == 1
    assert "SERINETTE_HEARTBEAT_S: must be a valid number" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def sines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process starts loads no model."""
    for name, value in SINES.items():
        monkeypatch.setenv(name, value)


class Reported(Exception):
    """What was waited for was reported: enough seen."""


@pytest.mark.usefixtures("sines")
@pytest.mark.parametrize(
    ("part", "redis_url", "environment", "detail"),
    [
        ("controller", "redis://127.0.0.1:{port}", {}, "onnect"),
        ("gateway", None, {"STORE_URL": "s3://songs", "STORE_ENDPOINT": "http://127.0.0.1:{port}"}, "store"),
    ],
)
def test_what_is_not_there_is_what_it_waits_for(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    redis_url: str | None,
    environment: dict[str, str],
    detail: str,
) -> None:
    [port] = free_ports(1)
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    for name, value in environment.items():
        monkeypatch.setenv(f"SERINETTE_{name}", value.format(port=port))

    def report(notice: Notice) -> None:
        assert (notice.name, notice.phase) != (part, Phase.READY)
        if notice.name == part and notice.phase is Phase.WAITING and detail in notice.detail:
            raise Reported

    options = LocalOptions(directory / f"no-{detail}", port=0, redis_url=redis_url and redis_url.format(port=port))
    with pytest.raises(Reported), Local(options, report) as local:
        local.wait_ready()


@pytest.mark.usefixtures("sines")
def test_a_guarded_redis_opens_with_a_password_beside_its_url(
    directory: Path, redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.config_set("requirepass", "hush")
    monkeypatch.setenv("SERINETTE_REDIS_PASSWORD", "hush")

    def report(notice: Notice) -> None:
        assert "uthentication" not in notice.detail
        if (notice.name, notice.phase) == ("controller", Phase.READY):
            raise Reported

    with (
        pytest.raises(Reported),
        Local(LocalOptions(directory / "guarded", port=0, redis_url=redis_url), report) as local,
    ):
        local.wait_ready()
