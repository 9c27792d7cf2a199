"""The command line where no server is needed: what it says, and how it fails. With one: test_up.py."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console
from typer.core import TyperGroup
from typer.main import get_command

from serinette import __version__
from serinette.checkpoints import Fetched
from serinette.cli import app, following, jobs, options, terminal
from serinette.job import Job, JobStatus, Progress, Stage, now
from serinette.names import Lane
from serinette.spec import AudioFormat, GenerationSpec
from serinette.supervisor import Notice, Phase
from tests.servers import free_ports


class Said(NamedTuple):
    status: int
    output: str
    errors: str


class Shell:
    """Runs the CLI in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Said:
        self._monkeypatch.setattr("sys.argv", ["serinette", *arguments])
        with pytest.raises(SystemExit) as ended:
            app.run()
        text = self._capsys.readouterr()
        code = ended.value.code
        return Said(code if isinstance(code, int) else 0 if code is None else 1, text.out, text.err)


@pytest.fixture
def serinette(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


def a_job(status: JobStatus = JobStatus.RUNNING, **fields: object) -> Job:
    made = Job(
        id="a",
        tenant="t",
        status=status,
        spec=GenerationSpec(prompt="jazz [piano]"),
        pool="default",
        lane=Lane.NORMAL,
        created_at=now(),
        timeout_s=60,
    )
    return made.model_copy(update=fields)


def denoising(step: int) -> Progress:
    return Progress(stage=Stage.DENOISING, step=step, steps=8, at=now())


def test_the_version(serinette: Shell) -> None:
    for words in ("--version", "-V"):
        assert serinette(words) == (0, f"serinette {__version__}\n", ""), words


@pytest.mark.parametrize("command", ["up", "worker"])
def test_how_long_running_songs_may_take_is_a_setting_as_for_a_pod(command: str) -> None:
    group = get_command(app.app)
    assert isinstance(group, TyperGroup)
    (given,) = (each for each in group.commands[command].params if each.name == "drain_timeout_s")
    assert given.envvar == "SERINETTE_DRAIN_TIMEOUT_S"


def test_help_names_every_command(serinette: Shell) -> None:
    said = serinette("--help")
    assert said.status == 0
    for command in ("up", "demo", "submit", "watch", "jobs", "cancel", "queue"):
        assert re.search(rf"\b{command}\b", said.output)


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        (["keys", "list"], "redis", "server"),
        (["doctor", "--redis-url", "redis://127.0.0.1:1"], "pydantic_settings", "server"),
        (["doctor", "--cluster"], "kubernetes", "cluster"),
        (["doctor", "--context", "mine"], "kubernetes", "cluster"),
        (["mcp", "."], "mcp", "mcp"),
    ],
)
def test_a_missing_extra_is_named(command: list[str], missing: str, extra: str) -> None:
    """In a process of its own: modules imported a second time would be others than the tests beside it hold."""
    code = f"import sys; sys.modules[{missing!r}] = None; from serinette.cli import main; main()"
    said = subprocess.run([sys.executable, "-c", code, *command], check=False, capture_output=True, text=True)
    assert (said.returncode, f"pip install 'serinette[{extra}]'" in said.stderr) == (1, True), said


@pytest.mark.parametrize("command", [["submit", "jazz"], ["jobs"], ["queue"], ["cancel", "a"], ["watch", "a"]])
def test_without_a_server_it_says_how_to_start_one(serinette: Shell, command: list[str]) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    said = serinette(*command, "--server", url)
    assert said.status == terminal.EXIT_UNREACHABLE
    assert said.output == ""
    assert f"no Serinette answers at {url}" in said.errors
    assert "serinette up" in said.errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-d", "0.5"], "duration_s"),
        (["--key", "H minor"], "key_scale"),
        (["--label", "album"], "NAME=VALUE"),
        (["--lyrics", "@gone.txt"], "cannot read gone.txt"),
        (["-o", "song.midi"], "wav, flac, mp3, ogg, m4a"),
        (["-o", "gone/song.mp3"], "does not exist"),
        (["--lane", "fast"], "high"),
    ],
)
def test_wrong_usage_is_named_before_anything_is_sent(
    serinette: Shell, arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = serinette("submit", "jazz", *arguments)
    assert said.status == 2
    # Rich draws a box around it, and folds it to the terminal's width.
    assert complaint in re.sub(r"[\s│]+", " ", said.errors)


def test_the_ending_of_a_path_gives_the_format() -> None:
    assert options.format_of(None) is AudioFormat.MP3
    assert options.format_of(Path("song.FLAC")) is AudioFormat.FLAC
    assert options.format_of(Path("song")) is AudioFormat.MP3


def test_variations_get_a_number_each() -> None:
    assert following.path_of(Path("a/song.mp3"), 0, 1) == Path("a/song.mp3")
    assert following.path_of(Path("a/song.mp3"), 1, 2) == Path("a/song-2.mp3")


@pytest.mark.parametrize(
    ("value_s", "words"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_as_people_say_them(value_s: float, words: str) -> None:
    assert terminal.seconds(value_s) == words


def test_ages_have_one_unit() -> None:
    assert terminal.age(now() - timedelta(hours=2, minutes=5)) == "2 h"
    assert terminal.age(now() + timedelta(seconds=5)) == "0.0 s"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (a_job(JobStatus.QUEUED), "queued"),
        (a_job(JobStatus.QUEUED, position=2), "queued, 2nd in its lane"),
        (a_job(JobStatus.QUEUED, position=13), "queued, 13th in its lane"),
        (a_job(), "running"),
        (a_job(progress=denoising(4)), "denoising, step 4 of 8"),
        (a_job(progress=Progress(stage=Stage.UPLOADING, at=now())), "uploading"),
        (a_job(JobStatus.CANCELED), "canceled"),
    ],
)
def test_where_a_job_is(job: Job, words: str) -> None:
    assert terminal.state(job) == words


WAY = [
    a_job(JobStatus.QUEUED, position=1, waiting_for="a worker to load its model"),
    a_job(JobStatus.QUEUED, position=1, waiting_for="a worker to load its model"),
    a_job(progress=denoising(1), eta_s=3.0),
    a_job(progress=denoising(2), eta_s=2.0),
    a_job(JobStatus.SUCCEEDED),
]


def test_without_a_terminal_each_change_of_state_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.JobView("jazz [piano]") as view:
        for job in WAY:
            view.show(job)
    assert capsys.readouterr().err.splitlines() == [
        "jazz [piano]: queued (waits for a worker to load its model)",
        "jazz [piano]: denoising",
        "jazz [piano]: succeeded",
    ]


def test_without_a_terminal_a_number_that_moves_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 100, 3))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with terminal.JobView("jazz") as view:
        for percent in (26, 27, 28, 28, 29, 30):
            words = f"the model, which is loading: {percent} %"
            view.show(WAY[0].model_copy(update={"waiting_for": words, "waiting_code": "loading"}))
    shown = [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["26 %)", "29 %)"]


def test_beside_a_log_the_bar_is_lines_in_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(terminal, "errors", screen)
    with screen.capture() as captured, terminal.JobView("jazz", moving=False) as view:
        view.show(WAY[0])
        view.show(WAY[-1])
    assert captured.get() == "jazz: queued (waits for a worker to load its model)\njazz: succeeded\n"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_in_a_terminal_a_bar_moves_within_its_width(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(terminal, "errors", screen)
    frames = []
    with terminal.JobView("jazz [piano]") as view:
        for job in WAY:
            view.show(job)
            frame = Console(file=io.StringIO(), width=width)
            with frame.capture() as captured:
                frame.print(view.get_renderable())
            frames.append(captured.get())
    assert all(len(line) <= width for frame in frames for line in frame.splitlines())
    assert "waits for a worker to load its model" in " ".join(frames[0].split())
    assert "step 1 of 8" in frames[2]
    assert "a worker" not in frames[2]
    if width > 40:
        assert "3.0 s left" in frames[2]
        assert "jazz [piano]" in frames[2]


@pytest.mark.parametrize("width", [80, 200])
def test_a_table_of_jobs_fits(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(terminal, "output", screen)
    job = a_job(id="2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10", spec=GenerationSpec(prompt="an endless raga " * 20))
    with screen.capture() as captured:
        jobs.show_jobs([job])
    heading, row = captured.get().splitlines()
    assert heading.split() == ["JOB", "STATUS", "AGE", "PROMPT"]
    assert row.startswith("2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10  running")
    assert row.endswith("…")
    assert len(row) == width


def test_supervised_processes_are_reported_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    view = terminal.ProcessView()
    view.show(Notice("worker", Phase.WAITING, "loading [the] model"))
    view.show(Notice("worker", Phase.WAITING, "loading [the] model"))
    view.show(Notice("worker", Phase.READY, "4.2 s"))
    view.show(Notice("worker", Phase.DIED, "was killed by SIGKILL; starts again in 0.5 s", ("Traceback [1]",)))
    printed = capsys.readouterr().err
    assert printed.count("loading [the] model") == 1
    for words in ("ready after 4.2 s", "killed by SIGKILL", "Traceback [1]"):
        assert words in printed


@pytest.mark.parametrize("terminal_there", [True, False])
def test_a_download_is_shown_in_bytes(monkeypatch: pytest.MonkeyPatch, terminal_there: bool) -> None:
    screen = Console(file=io.StringIO(), force_terminal=terminal_there, width=100, color_system=None)
    monkeypatch.setattr(terminal, "errors", screen)
    view = terminal.ProcessView()
    with screen.capture() as captured:
        for done_bytes in (500_000_000, 900_000_000, 1_000_000_000, 10_500_000_000):
            view.show(Notice("worker", Phase.WAITING, "loading", fetched=Fetched(done_bytes, 11_000_000_000)))
            view.show(Notice("gateway", Phase.WAITING, "starting"))
            if view._live:
                view._live.refresh()  # else a few times a second
        view.show(Notice("worker", Phase.WAITING, "loading"))
        view.close()
    printed = captured.get()
    if terminal_there:
        assert "worker: loading  gateway: starting" in printed
        assert "10.5/11.0 GB" in printed
        return
    assert [line for line in printed.splitlines() if "worker" in line] == [
        "  worker: loading, 500 of 11,000 MB have come",
        "  worker: loading, 10,500 of 11,000 MB have come",
        "  worker: loading",
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(serinette: Shell, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_SERINETTE_COMPLETE", "")  # the command sets it: put back behind the test
    assert "_SERINETTE_COMPLETE=complete_" in serinette("completion", shell).output
