"""The Python client, the commands and what the pages for users show, run against real processes with a fast engine."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from threading import Thread, Timer

import httpx
import numpy as np
import pytest
from standardwebhooks import Webhook

from serinette.batch import BatchLine
from serinette.client import BatchOptions, Client, Retry
from serinette.job import JobStatus
from serinette.media import encode, read_song_tags, song_tags
from serinette.spec import AudioFormat, GenerationSpec
from tests.processes import eventually
from tests.receivers import SECRET, receiver
from tests.servers import free_ports
from tests.stack import Stack, running
from tests.up import CLI, ENVIRONMENT

DOCS = Path(__file__).parents[2] / "docs"
README = "../README.md"
EXAMPLES = DOCS.parent / "examples"
_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# As after an installation: one word.
SHELL = f'set -euo pipefail\nserinette() {{ "{sys.executable}" -m serinette.cli "$@"; }}\n'


def blocks(page: str, language: str, section: str | None = None) -> list[str]:
    """The blocks of a page that are meant to be run; those called `text` are not. Without a section, those of all but
    `## Containers`, which need a cluster.
    """
    titled = [
        (each.partition("\n")[0], each) for each in re.split(r"^## ", (DOCS / page).read_text(), flags=re.MULTILINE)
    ]
    texts = [text for title, text in titled if (title == section if section else title != "Containers")]
    return [code for text in texts for kind, code in _BLOCK.findall(text) if kind == language]


# A page's commands are run one after the other.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A whole Serinette whose engine generates sines."""
    shared = {"SERINETTE_WEBHOOK_SECRET": SECRET, "SERINETTE_WEBHOOK_NETWORKS": '["127.0.0.0/8"]'}
    worker = {"SERINETTE_ENGINE_MODULE": "tests.engines"}
    with running(tmp_path_factory.mktemp("clients"), shared=shared, worker=worker) as stack:
        yield stack


@pytest.fixture
def client(fast: Stack) -> Iterator[Client]:
    with Client(fast.url) as client:
        yield client


class Shell:
    """Runs commands in a directory, in an environment that names the gateway."""

    def __init__(self, url: str, directory: Path) -> None:
        self.directory = directory
        self.environment = {
            **ENVIRONMENT,
            "URL": url,
            "SERINETTE_URL": url,
            "PYTHONPATH": os.pathsep.join([str(DOCS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }

    def run(self, *command: str, given: str = "") -> subprocess.CompletedProcess[bytes]:
        """A command to its end, with something on standard input."""
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            timeout=280,
            cwd=self.directory,
            env=self.environment,
            input=given.encode(),
        )

    def serinette(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[bytes]:
        """One of our commands."""
        return self.run(*CLI, *arguments, given=given)


@pytest.fixture
def shell(fast: Stack, tmp_path: Path) -> Shell:
    return Shell(fast.url, tmp_path)


PYTHON_BLOCKS = [(page, number) for page in ("python.md", README) for number in range(len(blocks(page, "python")))]


@pytest.mark.parametrize(("page", "number"), PYTHON_BLOCKS)
def test_a_python_block(fast: Stack, shell: Shell, page: str, number: int) -> None:
    code = re.sub(r"http://(127\.0\.0\.1|localhost):8019", fast.url, blocks(page, "python")[number])
    ended = shell.run(sys.executable, "-c", code)
    assert ended.returncode == 0, ended.stderr.decode()
    assert all(path.stat().st_size > 1_000 for path in shell.directory.rglob("*.mp3"))


@pytest.mark.parametrize("page", ["laptop.md", "rest.md"])
def test_the_shell_blocks_of_a_page(shell: Shell, page: str) -> None:
    ended = shell.run("bash", "-c", SHELL + "\n".join(blocks(page, "bash")))
    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()
    assert (shell.directory / "song.mp3").read_bytes()[:3] == b"ID3"


@pytest.mark.parametrize("section", ["Try it", "The API in five lines", "日本語クイックスタート"])
def test_the_commands_of_the_readme(fast: Stack, shell: Shell, section: str) -> None:
    """But for those of make, which bring the server, or another one."""
    (shell.directory / "prompts.jsonl").write_text('{"prompt": "a waltz", "duration_s": 1}\n')
    code = "\n".join(block for block in blocks(README, "bash", section) if not block.startswith("make "))
    code = code.replace(".venv/bin/serinette", "serinette").replace("localhost:8019", fast.url)
    ended = shell.run("bash", "-c", SHELL + code)
    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()
    songs = list(shell.directory.rglob("*.mp3"))
    assert songs
    assert all(song.read_bytes()[:3] == b"ID3" for song in songs)


@pytest.mark.parametrize("command", [(sys.executable, str(EXAMPLES / "song.py")), (str(EXAMPLES / "song.sh"),)])
def test_an_example_saves_a_song_or_says_why_there_is_none(shell: Shell, command: tuple[str, ...]) -> None:
    ended = shell.run(*command, 'a "slow" waltz', "song.mp3")
    assert ended.returncode == 0, ended.stderr.decode()
    tags = read_song_tags(shell.directory / "song.mp3")
    assert tags and tags.spec.prompt == 'a "slow" waltz'
    failed = shell.run(*command, "nan", "none.mp3")
    assert (failed.returncode, b"not finite" in failed.stderr) == (1, True), failed.stderr
    assert not (shell.directory / "none.mp3").exists()


def test_the_example_of_a_batch_goes_on_where_it_was_stopped(shell: Shell, client: Client) -> None:
    command = (sys.executable, str(EXAMPLES / "batch.py"), str(EXAMPLES / "songs.jsonl"), "songs")
    first = shell.run(*command)
    assert first.returncode == 0, first.stderr.decode()
    songs = {path.name: path.stat().st_mtime_ns for path in (shell.directory / "songs").iterdir()}
    assert songs.keys() == {"000001-waltz.mp3", "000002-sad.mp3", "000003-march.mp3", "000003-march-1.mp3"}
    (shell.directory / "songs/000002-sad.mp3").unlink()  # as if it had been stopped before
    batches = client.batches.list(100)
    assert shell.run(*command).returncode == 0
    again = {path.name: path.stat().st_mtime_ns for path in (shell.directory / "songs").iterdir()}
    assert {name for name in songs if again[name] != songs[name]} == {"000002-sad.mp3"}
    assert [batch.id for batch in client.batches.list(100)] == [batch.id for batch in batches], "no second one was made"


def test_the_example_of_a_receiver_saves_what_is_signed(shell: Shell, client: Client) -> None:
    (port,) = free_ports(1)
    shell.environment["SERINETTE_WEBHOOK_SECRET"] = SECRET
    server = [sys.executable, "-m", "uvicorn", "examples.webhook_receiver:app", "--port", str(port)]
    process = subprocess.Popen(server, cwd=shell.directory, env=shell.environment, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/ended"
    try:
        job = client.submit("a waltz", duration_s=1, webhook=address)
        assert eventually((shell.directory / f"songs/{job.id}.mp3").exists, 60)
        event = json.dumps({"type": "job.succeeded", "data": {"id": "another"}})
        forged = {"webhook-id": "msg", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,Zm9yZ2Vk"}
        assert httpx.post(address, content=event, headers=forged).status_code == 401
        assert httpx.post(address, content=event).status_code == 401
        assert httpx.post(address, content=b" " * (1 << 21)).status_code == 413
        assert eventually(lambda: client.get(job.id).deliveries)
        assert [each.status for each in client.get(job.id).deliveries] == [202]
    finally:
        process.kill()
        process.wait()


# A reader of the page waits for a batch's end where it says so.
_PATIENT_CURL = """
ended() { until command curl -sS "$1" | grep -qE '"status": ?"(completed|canceled)"'; do sleep 0.2; done; }
curl() {
    case "$*" in
        */retry | *DELETE* | *output.jsonl*) ended "$(grep -oE 'http[^ ]+/batch-[0-9a-f]+' <<< "$*")" ;;
    esac
    command curl --fail-with-body "$@"
}
"""


def test_the_shell_blocks_about_batches(shell: Shell, client: Client) -> None:
    try:
        ended = shell.run("bash", "-c", f"set -euo pipefail\n{_PATIENT_CURL}" + "\n".join(blocks("batches.md", "bash")))
    finally:
        if (shell.directory / "sweep.json").exists():
            sweep = json.loads((shell.directory / "sweep.json").read_text())["id"]
            client.batches.cancel(sweep)
            assert client.batches.wait(sweep, timeout_s=120, poll_s=0.2).status == "canceled"
    assert ended.returncode == 0, (ended.stdout + ended.stderr).decode()
    names = zipfile.ZipFile(shell.directory / "songs.zip").namelist()
    assert names == ["000001-jazz.mp3", "000002.mp3", "000003.mp3", "000003-1.mp3"]
    assert (shell.directory / "errors.jsonl").read_bytes() == b""


def test_events_go_on_when_the_gateway_dies(fast: Stack) -> None:
    with Client(fast.url, retry=Retry(longest_s=0.5)) as client:
        job = client.submit("slow 4", duration_s=1)
        seen: list[str] = []
        listening = Thread(target=lambda: seen.extend(event.type for event in client.events(job.id)))
        listening.start()
        assert eventually(lambda: "progress" in seen)
        fast.kill("gateway")
        fast.start("gateway")
        listening.join(90)
        assert not listening.is_alive()
    assert (seen[0], seen[-1], seen.count("succeeded")) == ("status", "succeeded", 1)
    assert seen.count("status") >= 2  # the connection broke, and was taken up again


def test_a_wait_outlives_the_gateway_and_a_repeated_submit_is_one_job(fast: Stack, client: Client) -> None:
    jobs = {client.submit("slow 2", duration_s=1, idempotency_key="mine").id for _ in range(3)}
    assert len(jobs) == 1
    fast.kill("gateway")
    starting = Timer(1, fast.start, ["gateway"])
    starting.start()
    job = client.wait(jobs.pop(), timeout_s=120)
    starting.join()
    assert job.status is JobStatus.SUCCEEDED
    assert {found.id for found in client.iterate(status=JobStatus.SUCCEEDED)} >= {job.id}


def test_a_song_out_of_a_pipe_into_a_pipe(shell: Shell) -> None:
    ended = shell.serinette("submit", "-", "-d", "1", "-o", "-", given="a waltz\n")
    assert ended.returncode == 0, ended.stderr.decode()
    tags = read_song_tags(io.BytesIO(ended.stdout))
    assert tags is not None
    assert tags.spec.prompt == "a waltz"
    assert b"a waltz: succeeded" in ended.stderr
    assert b"\x1b" not in ended.stderr


def test_every_option_of_a_song_reaches_the_job(shell: Shell, client: Client) -> None:
    (shell.directory / "hum.wav").write_bytes(_song(seed=3))
    options = "--from 0.2 --to 0.8 --task repaint --lane high --label album=blue --start-deadline 600 --timeout 60"
    options += " --thinking --lm-seed 0 --lm-temperature 0 --lm-top-p 0.5 --lm-cfg-scale 3"
    ended = shell.serinette(
        "submit", "jazz", "--source", "hum.wav", *options.split(), "--seed", "5", "--no-wait", "--json"
    )
    assert ended.returncode == 0, ended.stderr.decode()
    job = client.wait(json.loads(ended.stdout)["id"], timeout_s=120)
    assert (job.lane, job.labels, job.timeout_s, job.start_by is not None) == ("high", {"album": "blue"}, 60, True)
    assert (job.spec.task, job.spec.repaint_start_s, job.spec.repaint_end_s, job.spec.seed) == ("repaint", 0.2, 0.8, 5)
    assert (job.spec.thinking, job.spec.lm_seed, job.spec.lm_temperature) == (True, 0, 0)
    assert (job.spec.lm_top_p, job.spec.lm_cfg_scale) == (0.5, 3)
    assert job.spec.source_audio and job.spec.source_audio.startswith("upload-")
    missing = shell.serinette("submit", "jazz", "--source", "gone.wav")
    assert (missing.returncode, b"there is no file gone.wav" in missing.stderr) == (1, True)


def _song(seed: int) -> bytes:
    """A file whose tags claim another seed than the one it was generated with."""
    spec = GenerationSpec(prompt="jazz", duration_s=1, format=AudioFormat.WAV)
    samples = np.zeros((2, 48_000), np.float32)
    return encode(samples, 48_000, AudioFormat.WAV, tags=song_tags(spec, seed, "sine", "f" * 64, "job"))


def test_a_song_made_again_has_the_same_bits_or_it_is_said(shell: Shell) -> None:
    assert shell.serinette("submit", "jazz", "-d", "1", "-n", "2", "-o", "song.mp3").returncode == 0
    second = shell.serinette("replay", "song-2.mp3", "-o", "again.mp3")
    assert (second.returncode, second.stdout) == (0, b"the same bits: all 48,000 frames\n")
    assert (shell.directory / "again.mp3").is_file()
    (shell.directory / "other.wav").write_bytes(_song(seed=3))
    other = shell.serinette("replay", "other.wav")
    assert other.returncode == 4
    assert b"samples differ by up to 0.5 of full scale" in other.stdout
    assert b"generated by revision ffffffffffff of sine" in other.stderr
    replayed = json.loads(shell.serinette("replay", "other.wav", "--json").stdout)
    assert (replayed["same_bits"], replayed["frames"], replayed["job"]["status"]) == (False, 48_000, "succeeded")
    (shell.directory / "no.mp3").write_bytes(b"no song")
    assert shell.serinette("replay", "no.mp3").returncode == 1


@pytest.mark.parametrize(
    ("option", "end"), [((), JobStatus.SUCCEEDED), (("--cancel-on-interrupt",), JobStatus.CANCELED)]
)
def test_ctrl_c(shell: Shell, client: Client, option: tuple[str, ...], end: JobStatus) -> None:
    label = f"ctrl-c={len(option)}"
    process = subprocess.Popen(
        [*CLI, "submit", "slow 4", "-d", "1", "--label", label, *option],
        env=shell.environment,
        cwd=shell.directory,
        stderr=subprocess.PIPE,
        text=True,
    )
    name, _, value = label.partition("=")

    def runs() -> bool:
        return any(job.status is JobStatus.RUNNING for job in client.list(label=(name, value)).jobs)

    assert eventually(runs)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    (job,) = client.list(label=(name, value)).jobs
    assert (f"Canceled job {job.id}" if option else f"watch {job.id}") in said
    assert client.wait(job.id, timeout_s=120).status is end


def test_workers_and_queue_are_shown(shell: Shell, client: Client) -> None:
    assert eventually(lambda: client.workers().pools[0].workers[0].busy_slots == 0)
    plain = shell.serinette("workers")
    assert plain.returncode == 0, plain.stderr.decode()
    pool, _, stage, busy, _, model, device = plain.stdout.decode().rstrip("\n").split("\t")
    assert (pool, stage, busy, model, device) == ("default", "ready", "0/2", "sine", "an imagined one")
    assert plain.stderr.startswith(b"Pool default: 1 worker, 0 waiting")
    assert json.loads(shell.serinette("workers", "--json").stdout)["pools"][0]["workers"][0]["stage"] == "ready"


def test_a_batch_is_generated_into_a_directory_and_goes_on_where_it_was(shell: Shell, client: Client) -> None:
    lines: list[dict[str, object]] = [
        {"prompt": "jazz", "custom_id": "a/b"},
        {"prompt": "nan"},
        {"prompt": "slow 3", "variations": 2},
    ]
    prompts = shell.directory / "prompts.jsonl"
    prompts.write_text("".join(f"{json.dumps({**line, 'duration_s': 1})}\n" for line in lines))
    run = ("batch", "run", "prompts.jsonl", "-o", "songs")
    begun = subprocess.Popen([*CLI, *run], env=shell.environment, cwd=shell.directory, stderr=subprocess.PIPE)
    assert eventually((shell.directory / "songs/000001-a_b.mp3").exists, 60)
    begun.send_signal(signal.SIGINT)
    _, said = begun.communicate(timeout=60)
    assert (begun.returncode, b"the same command again" in said) == (130, True), said
    (batch,) = client.batches.list(1)
    named = httpx.get(f"{shell.environment['URL']}/v1/batches/{batch.id}/lines").json()["lines"]
    assert (batch.status, [line["custom_id"] for line in named]) == ("in_progress", ["a/b", None, None])
    first = shell.serinette(*run)
    assert first.returncode == 4, first.stderr.decode()
    assert first.stdout.startswith(b"2\t1\t0\t3\t")
    assert b"line 2: the model produced samples that are not finite" in first.stderr
    songs = {path.name: path.stat().st_mtime_ns for path in (shell.directory / "songs").glob("*.mp3")}
    assert songs.keys() == {"000001-a_b.mp3", "000003.mp3", "000003-1.mp3"}
    failed = json.loads((shell.directory / "songs/errors.jsonl").read_text())
    assert (failed["line"], failed["error"]["code"]) == (2, "invalid_output")
    batches = shell.serinette("batch", "ls").stdout.splitlines()
    (shell.directory / "songs/000003.mp3").unlink()  # as if it had been killed before
    again = json.loads(shell.serinette(*run, "--json").stdout)
    assert (again["status"], again["files"]) == ("completed", 3)
    kept = {path.name: path.stat().st_mtime_ns for path in (shell.directory / "songs").glob("*.mp3")}
    assert [name for name in songs if kept[name] != songs[name]] == ["000003.mp3"]
    assert len(shell.serinette("batch", "ls").stdout.splitlines()) == len(batches), "no second one was made"
    prompts.write_text('{"prompt": "other"}\n')
    other = shell.serinette(*run)
    assert (other.returncode, b"holds the songs of other prompts" in other.stderr) == (1, True)


def test_a_batch_through_real_slots_is_reported_line_by_line(client: Client, tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"prompt": "jazz", "seed": 7, "custom_id": "first"},
        {"prompt": "nan", "custom_id": "broken"},
        {"prompt": "cello", "variations": 2},
        {"prompt": f"crash once {tmp_path.name}"},
        {"prompt": "waltz", "format": "flac"},
        {"prompt": "polka"},
    ]
    with receiver() as target:
        options = BatchOptions(webhook=f"http://127.0.0.1:{target.port}/ended", labels={"album": "blue"})
        batch = client.batches.create([{**line, "duration_s": 1} for line in lines], options)
        ended = client.batches.wait(batch.id, timeout_s=240, poll_s=0.2)
        assert eventually(lambda: target.came, 60)
    counts = ended.request_counts
    assert (ended.status, counts.total, counts.completed, counts.failed, counts.canceled) == ("completed", 6, 5, 1, 0)
    event = Webhook(SECRET).verify(target.came[0].body, target.came[0].headers)
    assert (event["type"], event["data"]["id"], event["data"]["request_counts"]["failed"]) == (
        "batch.completed",
        batch.id,
        1,
    )
    client.batches.download(batch.id, "output.jsonl", tmp_path / "output.jsonl")
    client.batches.download(batch.id, "errors.jsonl", tmp_path / "errors.jsonl")
    output, errors = (
        [BatchLine.model_validate_json(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("output.jsonl", "errors.jsonl")
    )
    assert [(line.line, len(line.artifacts)) for line in output] == [(1, 1), (3, 2), (4, 1), (5, 1), (6, 1)]
    assert (output[0].custom_id, output[0].seed, output[3].artifacts[0].format) == ("first", 7, "flac")
    assert [(line.line, line.custom_id, line.error and line.error.code) for line in errors] == [
        (2, "broken", "invalid_output")
    ]
    crashed = client.get(str(output[2].job_id))
    assert (crashed.lane, crashed.labels["album"], crashed.labels["line"]) == ("low", "blue", "4")
    assert len(crashed.attempts) == 2


def test_a_wrong_line_begins_nothing(shell: Shell) -> None:
    (shell.directory / "prompts.jsonl").write_text('{"prompt": "jazz"}\n{"prompt": "jazz", "duration_s": 0}\n')
    refused = shell.serinette("batch", "run", "prompts.jsonl", "-o", "songs")
    assert refused.returncode == 1
    assert b"line 2:" in refused.stderr
    assert not (shell.directory / "songs").exists()


def test_a_batch_is_paused_resumed_and_canceled(shell: Shell, client: Client) -> None:
    batch = client.batches.create(["slow 30"] * 4, idempotency_key="steered")
    assert client.batches.create(["slow 30"] * 4, idempotency_key="steered").id == batch.id
    for verb, status in (("pause", "paused"), ("resume", "in_progress"), ("cancel", "cancel")):
        ended = shell.serinette("batch", verb, batch.id, "--json")
        assert ended.returncode == 0, ended.stderr.decode()
        assert json.loads(ended.stdout)["status"].startswith(status)
    assert client.batches.wait(batch.id, timeout_s=120, poll_s=0.2).status == "canceled"
    assert {line.status for line in client.batches.lines(batch.id)} == {"canceled"}
    client.batches.erase(batch.id)
