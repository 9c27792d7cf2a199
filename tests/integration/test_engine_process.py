"""The engine process as a slot sees it: over its real socket, with a fast engine and once with the real one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE, ENGINE_ENVIRONMENT
from gpu_worker.wire import (
    Audio,
    Cancel,
    Connection,
    Decoded,
    Failed,
    Generate,
    Generated,
    Hello,
    Message,
    Report,
    Samples,
    Stopped,
    share_samples,
)
from serinette.job import Progress, Stage, now
from serinette.spec import GenerationSpec
from tests.processes import eventually

PATIENCE_S = 60
# The real one reads torch and a model, beside all that a busy machine does.
LOADING_PATIENCE_S = 240
# Half a second a step, and longer than any test waits: an answer proves that it was stopped.
ENDLESS: dict[str, Any] = {"prompt": "slow 200", "steps": 200}
SECOND = {"duration_s": 1.0}


@dataclass
class Slot:
    """A slot's end of the socket."""

    connection: Connection
    reports: list[Report] = field(default_factory=list)
    songs: list[Samples] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)

    def receive(self, patience_s: float = PATIENCE_S) -> Message:
        message = self.connection.receive(patience_s)
        assert message is not None, f"the engine said nothing for {patience_s:g} s"
        return message

    def ready(self, patience_s: float = PATIENCE_S) -> Hello:
        while True:
            hello = self.receive(patience_s)
            assert isinstance(hello, Hello)
            if hello.stage == "ready":
                return hello

    def ask(self, source: Samples | None = None, **asked: Any) -> None:
        self.reports.clear()
        self.decoded.clear()
        self.songs = []
        if source is not None:
            asked["source_audio"] = "upload"
        spec = GenerationSpec(**{**SECOND, "seed": 1, **asked}).to_wire()
        if source is None:
            self.connection.send(Generate(job_id="job", spec=spec))
            return
        audio = Audio(role="source", channels=source.shape[0], frames=source.shape[1])
        descriptor = share_samples(source)
        self.connection.send(Generate(job_id="job", spec=spec, audio=(audio,)), [descriptor])
        os.close(descriptor)

    def answer(self) -> Generated | Failed | Stopped:
        while True:
            message = self.receive()
            if isinstance(message, Report):
                self.reports.append(message)
                continue
            if isinstance(message, Decoded):
                self.decoded.append(message.index)
                self.songs.append(self.connection.take_samples(message.song))
                continue
            assert isinstance(message, Generated | Failed | Stopped)
            return message

    def until(self, stage: Stage) -> None:
        while (message := self.receive()) and not (isinstance(message, Report) and message.stage is stage):
            pass

    def generated(self, **asked: Any) -> Generated:
        self.ask(**asked)
        answer = self.answer()
        assert isinstance(answer, Generated), answer
        return answer


@dataclass
class EngineProcess:
    process: subprocess.Popen[bytes]
    socket: Path
    log: Path

    @contextlib.contextmanager
    def slot(self) -> Iterator[Slot]:
        connection = self.connect()
        try:
            yield Slot(connection)
        finally:
            connection.close()

    def connect(self) -> Connection:
        opened: list[Connection] = []

        def try_it() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError):
                opened.append(Connection.connect(self.socket, PATIENCE_S))
            return bool(opened)

        assert eventually(try_it, PATIENCE_S)
        return opened[0]


@contextlib.contextmanager
def engine_process(work_dir: Path, module: str = "tests.engines", **settings: str) -> Iterator[EngineProcess]:
    given = {f"SERINETTE_{name.upper()}": value for name, value in settings.items()}
    environment = {**os.environ, **ENGINE_ENVIRONMENT, "SERINETTE_WORK_DIR": str(work_dir), **given}
    log = work_dir / "engine.log"
    with log.open("ab") as file:
        process = subprocess.Popen([sys.executable, "-m", module], env=environment, stderr=file)
    try:
        yield EngineProcess(process, work_dir / "engine.sock", log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine_process(tmp_path) as started:
        yield started


@pytest.fixture
def slot(engine: EngineProcess) -> Iterator[Slot]:
    with engine.slot() as connected:
        connected.ready()
        yield connected


class TestGeneration:
    def test_it_says_loading_then_ready_and_generates_what_was_asked_meanwhile(self, tmp_path: Path) -> None:
        with engine_process(tmp_path, model="slow 1") as engine, engine.slot() as slot:
            assert slot.receive() == Hello(pid=engine.process.pid, stage="loading")
            slot.ask()
            hello = slot.ready()
            assert hello.pid == engine.process.pid
            assert hello.model is not None
            assert (hello.model.name, hello.device) == ("sine", "an imagined one")
            assert isinstance(slot.answer(), Generated)

    def test_variations_come_with_seeds_of_their_own(self, slot: Slot) -> None:
        own = slot.generated(seed=[10, 99, 7], variations=3)
        assert [song.seed for song in own.songs] == [10, 99, 7]

    def test_variations_come_with_their_seeds(self, slot: Slot) -> None:
        answer = slot.generated(seed=5, variations=3, guidance_scale=7)
        assert [song.seed for song in answer.songs] == [5, 6, 7]
        assert answer.sampling.steps == 8
        assert answer.warnings == ("guidance_scale: ignored, a turbo checkpoint has guidance in its weights",)
        assert len(slot.songs) == 3
        assert all(song.shape == (2, 48_000) for song in slot.songs)
        for index, song in enumerate(slot.songs):
            slot.generated(seed=5 + index)
            assert np.array_equal(slot.songs[0], song)

    def test_progress_never_runs_backwards(self, slot: Slot) -> None:
        slot.generated(variations=3)
        reported = [Progress(**report.model_dump(exclude={"type"}), at=now()).fraction for report in slot.reports]
        assert reported == sorted(reported)
        assert [(report.step, report.steps) for report in slot.reports if report.step] == [
            (step, 24) for step in range(1, 25)
        ]
        assert slot.reports[0].stage is Stage.CONDITIONING
        assert slot.reports[-1].stage is Stage.DECODING

    def test_a_source_reaches_the_engine(self, slot: Slot) -> None:
        slot.generated(source=np.zeros((2, 70_000), np.float32), task="cover")
        assert slot.songs[0].shape == (2, 70_000)

    def test_two_slots_have_their_turns(self, engine: EngineProcess, slot: Slot) -> None:
        with engine.slot() as other:
            other.ready()
            slot.ask(prompt="slow 1")
            slot.until(Stage.CONDITIONING)
            other.ask()
            assert isinstance(other.answer(), Generated)
            assert other.reports[0].stage is Stage.WAITING_FOR_ENGINE
            assert isinstance(slot.answer(), Generated)


class TestBatch:
    def test_songs_of_a_kind_are_generated_together(self, tmp_path: Path) -> None:
        with engine_process(tmp_path, max_batch="4") as engine, engine.slot() as slot:
            slot.ready()
            assert slot.generated(variations=6).batch_size == 4
            assert [report.step for report in slot.reports if report.step][-1] == 48
            assert slot.decoded == [0, 1, 2, 3, 4, 5]

    def test_a_song_is_handed_over_while_its_batch_goes_on(self, tmp_path: Path) -> None:
        with engine_process(tmp_path, max_batch="4") as engine, engine.slot() as slot:
            slot.ready()
            slot.ask(prompt="then more", variations=3)
            while not isinstance(message := slot.receive(), Decoded):
                assert isinstance(message, Report)
            assert message.index == 0
            slot.connection.take_samples(message.song)
            (tmp_path / "tokens").mkdir()
            (tmp_path / "tokens" / "more").touch()
            assert isinstance(slot.answer(), Generated)
            assert slot.decoded == [1, 2]

    def test_a_bad_song_does_not_spoil_its_neighbours(self, tmp_path: Path) -> None:
        with engine_process(tmp_path, max_batch="4") as engine, contextlib.ExitStack() as stack:
            first, bad, good = (stack.enter_context(engine.slot()) for _ in range(3))
            first.ready()
            first.ask(prompt="slow 1", duration_s=2)
            first.until(Stage.CONDITIONING)
            for slot, prompt in ((bad, "nan"), (good, "good")):
                slot.ready()
                slot.ask(prompt=prompt)
            answer = bad.answer()
            assert isinstance(answer, Failed)
            assert answer.error.code == "invalid_output"
            answer = good.answer()
            assert isinstance(answer, Generated)
            assert answer.batch_size == 2  # it was tried together, and then alone

    def test_a_canceled_member_leaves_the_others_generating(self, tmp_path: Path) -> None:
        with engine_process(tmp_path, max_batch="4") as engine, contextlib.ExitStack() as stack:
            first, canceled, other = (stack.enter_context(engine.slot()) for _ in range(3))
            first.ready()
            first.ask(prompt="slow 0.5", duration_s=2)
            first.until(Stage.CONDITIONING)
            for slot in (canceled, other):
                slot.ready()
                slot.ask(prompt="slow 2")
            canceled.until(Stage.DENOISING)
            canceled.connection.send(Cancel())
            assert isinstance(canceled.answer(), Stopped)
            answer = other.answer()
            assert isinstance(answer, Generated)
            assert answer.batch_size == 2


class TestCancel:
    def test_a_running_song_stops_within_a_step(self, slot: Slot) -> None:
        slot.ask(**ENDLESS)
        slot.until(Stage.DENOISING)
        slot.connection.send(Cancel())
        assert isinstance(slot.answer(), Stopped)
        assert len(slot.reports) <= 2
        assert slot.generated(seed=3).songs[0].seed == 3

    def test_all_its_variations_stop(self, slot: Slot) -> None:
        slot.ask(variations=8, **ENDLESS)
        slot.until(Stage.DENOISING)
        slot.connection.send(Cancel())
        assert isinstance(slot.answer(), Stopped)

    def test_a_waiting_song_is_answered_at_once(self, engine: EngineProcess, slot: Slot) -> None:
        slot.ask(prompt="hang")
        slot.until(Stage.CONDITIONING)
        with engine.slot() as other:
            other.ready()
            other.ask()
            other.connection.send(Cancel())
            assert isinstance(other.answer(), Stopped)

    def test_a_slot_that_goes_away_gives_up_its_song(self, engine: EngineProcess, slot: Slot) -> None:
        with engine.slot() as leaving:
            leaving.ready()
            leaving.ask(**ENDLESS)
            leaving.until(Stage.DENOISING)
        assert isinstance(slot.generated(), Generated)

    def test_a_cancel_of_nothing_changes_nothing(self, slot: Slot) -> None:
        slot.connection.send(Cancel())
        assert isinstance(slot.generated(), Generated)


class TestTrouble:
    @pytest.mark.parametrize(
        ("asked", "code", "words"),
        [
            ({"prompt": "oom"}, "out_of_memory", "an imagined memory of 0 bytes"),
            ({"prompt": "nan"}, "invalid_output", "not finite"),
            ({"prompt": "bug"}, "internal", "ZeroDivisionError: a mistake of ours"),
            ({"lora": "warm"}, "unsupported", "a sine has none"),
        ],
    )
    def test_a_failure_is_reported_and_the_engine_goes_on(
        self, slot: Slot, asked: dict[str, Any], code: str, words: str
    ) -> None:
        slot.ask(**asked)
        answer = slot.answer()
        assert isinstance(answer, Failed)
        assert answer.error.code == code
        assert words in answer.error.message
        assert isinstance(slot.generated(), Generated)

    @pytest.mark.parametrize(("wire", "code"), [({"steps": 0}, "invalid_spec"), ({"schema": 10_000}, "handed_back")])
    def test_a_spec_it_cannot_read(self, slot: Slot, wire: dict[str, Any], code: str) -> None:
        slot.connection.send(Generate(job_id="job", spec=wire))
        answer = slot.answer()
        assert isinstance(answer, Failed)
        assert answer.error.code == code
        assert isinstance(slot.generated(), Generated)

    @pytest.mark.parametrize("how", ["crash", "kill"])
    def test_its_death_closes_every_socket(self, engine: EngineProcess, slot: Slot, how: str) -> None:
        with engine.slot() as other:
            other.ready()
            slot.ask(prompt="crash" if how == "crash" else "hang")
            if how == "kill":
                slot.until(Stage.CONDITIONING)
                engine.process.kill()
            for each in (slot, other):
                with pytest.raises(ConnectionError):
                    each.answer()

    def test_after_a_crash_the_same_song_is_generated_by_the_next(self, tmp_path: Path) -> None:
        with engine_process(tmp_path) as first, first.slot() as slot:
            slot.ready()
            slot.ask(prompt="crash once token")
            with pytest.raises(ConnectionError):
                slot.answer()
            assert first.process.wait(PATIENCE_S) == -signal.SIGKILL
        with engine_process(tmp_path) as second, second.slot() as slot:  # over the socket that the first one left
            slot.ready()
            assert isinstance(slot.generated(prompt="crash once token"), Generated)

    def test_nonsense_ends_its_own_connection_only(self, engine: EngineProcess, slot: Slot) -> None:
        for nonsense in (
            b"not json\n",
            b'{"type": "stopped"}\n',
            b'{"type":"generate","job_id":"x","spec":{},"audio":[{"role":"source","channels":2,"frames":9}]}\n',
        ):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(engine.socket))
                raw.sendall(nonsense)
                raw.settimeout(PATIENCE_S)
                while raw.recv(65_536):
                    pass
        assert isinstance(slot.generated(), Generated)


class TestProcess:
    def test_only_this_user_may_open_its_socket(self, engine: EngineProcess, slot: Slot) -> None:
        assert engine.socket.stat().st_mode & 0o777 == 0o600

    def test_a_second_engine_on_its_socket_refuses(self, engine: EngineProcess, slot: Slot, tmp_path: Path) -> None:
        with engine_process(tmp_path) as second:
            assert second.process.wait(PATIENCE_S) == CONFIGURATION_EXIT_CODE
        assert "another engine listens here" in engine.log.read_text()
        assert isinstance(slot.generated(), Generated)

    def test_a_model_that_cannot_be_loaded_ends_it_with_a_reason(self, tmp_path: Path) -> None:
        with engine_process(tmp_path, model="unloadable") as engine:
            assert engine.process.wait(PATIENCE_S) == CONFIGURATION_EXIT_CODE
        assert "model unloadable: cannot be loaded, as asked" in engine.log.read_text()

    def test_it_ends_at_once_on_sigterm_and_never_on_ctrl_c(self, engine: EngineProcess, slot: Slot) -> None:
        slot.ask(prompt="hang")
        slot.until(Stage.CONDITIONING)
        engine.process.send_signal(signal.SIGINT)
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(PATIENCE_S) == -signal.SIGTERM


REPAINT: dict[str, Any] = {"task": "repaint", "repaint_start_s": 0.5, "repaint_end_s": 1.0, "steps": 2}


class TestRealOne:
    @pytest.mark.timeout(3 * LOADING_PATIENCE_S)
    def test_two_processes_generate_the_same_bits(self, tmp_path: Path) -> None:
        source = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 60_000)).astype(np.float32)
        songs: list[list[Samples]] = []
        with contextlib.ExitStack() as stack:
            for name in ("one", "other"):
                (tmp_path / name).mkdir()
                started = engine_process(tmp_path / name, "gpu_worker.engine", threads="2")
                slot = stack.enter_context(stack.enter_context(started).slot())
                songs.append([])
                slot.ask(prompt="jazz piano, smooth", steps=2)
                slot.ready(LOADING_PATIENCE_S)
                answer = slot.answer()
                assert isinstance(answer, Generated), answer
                songs[-1] += slot.songs
                assert answer.model.name == "bundled"
                slot.generated(prompt="jazz", source=source, **REPAINT)
                songs[-1] += slot.songs
        for one, other in zip(*songs, strict=True):
            assert np.array_equal(one, other)
