"""What the doctor says of a machine with `serinette up`, by what it found; the finding itself is in test_up.py."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from serinette.checkpoints import CheckpointFiles, note_files
from serinette.cli.app import app
from serinette.doctor.findings import Level
from serinette.doctor.machine import Gpus, check_machine, judge_checkpoint, judge_disk, judge_gpu, judge_workers, whole
from serinette.doctor.queue import DoctorSettings
from serinette.job import now
from serinette.local import Run, last_run
from serinette.presence import Presence, WorkerStage

RUN = Run("process 7, http://127.0.0.1:8019", "http://127.0.0.1:8019", "bundled", running=True)
CARD = "NVIDIA H200, 570.86"


@pytest.mark.parametrize(
    ("gpus", "level", "words"),
    [
        (Gpus(), Level.OK, "torch is not installed"),
        (Gpus([], "2.13.0+cpu"), Level.OK, "none: songs are generated on the CPU, by torch 2.13.0+cpu"),
        (Gpus([CARD], "2.13.0+cpu"), Level.BAD, f"built without CUDA; the driver lists {CARD}"),
        (Gpus([CARD], "2.13.0", "13.0"), Level.BAD, "torch 2.13.0 finds no GPU"),
        (Gpus([CARD], "2.13.0", "13.0", ["NVIDIA H200, 139 GiB"]), Level.OK, "cuda:0 NVIDIA H200, 139 GiB; torch"),
    ],
)
def test_a_gpu_that_is_there_and_not_used_is_bad(gpus: Gpus, level: Level, words: str) -> None:
    found = judge_gpu(gpus)
    assert (found.level, bool(found.remedy)) == (level, level is not Level.OK)
    assert words in found.message


def test_a_driver_that_fails_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Failed to initialize NVML: version mismatch'\nexit 18\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (found,) = (
        each for each in check_machine(RUN._replace(url=None), tmp_path, DoctorSettings()) if each.part == "gpu"
    )
    assert (found.level, "NVML: version mismatch" in found.message) == (Level.WARNING, True), found


@pytest.mark.parametrize(("free_gb", "level"), [(0.4, Level.BAD), (4, Level.WARNING), (6, Level.OK)])
def test_a_disk_that_fills_up(free_gb: float, level: Level) -> None:
    assert judge_disk(Path("here"), int(free_gb * 1e9)).level is level


def worker(stage: WorkerStage, message: str = "") -> Presence:
    return Presence(name="w", pool="default", stage=stage, slots=1, message=message, device="cpu", started_at=now())


@pytest.mark.parametrize(
    ("workers", "failures", "level", "words"),
    [
        ([], 0, Level.WARNING, "none is ready yet: starting"),
        ([worker(WorkerStage.LOADING)], 0, Level.WARNING, "none is ready yet: loading"),
        ([worker(WorkerStage.LOADING)], 2, Level.BAD, "after 2 failed starts: model nowhere: no such directory"),
        ([], 1, Level.BAD, "model nowhere: no such directory"),
        ([worker(WorkerStage.READY), worker(WorkerStage.LOADING)], 0, Level.OK, "1 of 2 ready"),
    ],
)
def test_what_holds_the_workers(
    tmp_path: Path, workers: list[Presence], failures: int, level: Level, words: str
) -> None:
    said = [
        "INFO gpu_worker: starting",
        "ERROR gpu_worker.x: model nowhere: no such directory",
        "INFO gpu_worker: left",
    ]
    (tmp_path / "worker.log").write_text("".join(f"2026-01-01 00:00:00,000 {line}\n" for line in said))
    found = judge_workers(workers, failures, tmp_path)
    assert (found.level, words in found.message) == (level, True), found


def test_a_worker_that_fails_without_a_word_of_an_error(tmp_path: Path) -> None:
    found = judge_workers([worker(WorkerStage.STARTING, "the engine was killed by SIGKILL")], 1, tmp_path)
    assert (found.level, "killed by SIGKILL" in found.message) == (Level.BAD, True)


class TestCheckpoint:
    def judge(self, data_dir: Path, model: object) -> tuple[Level, str]:
        found = judge_checkpoint(RUN._replace(model=str(model)), data_dir)
        return found.level, found.message

    def test_one_that_is_downloaded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = CheckpointFiles(
            model="owner/music", directory=tmp_path / "blobs", incoming=tmp_path / "in", sizes_bytes={"a": 5, "b": 9}
        )
        level, message = self.judge(tmp_path, "owner/music")
        assert (level, "nothing of it is here yet" in message) == (Level.UNKNOWN, True)
        note_files(tmp_path / "work" / "checkpoints", files)
        files.directory.mkdir()
        (files.directory / "a").write_bytes(bytes(5))
        level, message = self.judge(tmp_path, "owner/music")
        assert (level, "owner/music: 0 of 0 MB have come" in message) == (Level.WARNING, True)
        with monkeypatch.context() as patched:
            patched.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 1, 8))
            level, message = self.judge(tmp_path, "owner/music")
            assert (level, "0.0 GB are free there" in message) == (Level.BAD, True)
        (files.directory / "b").write_bytes(bytes(9))
        assert self.judge(tmp_path, "owner/music")[0] is Level.OK

    def test_a_directory(self, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        (copy / "vae").mkdir(parents=True)
        (copy / "model_index.json").write_text("{}")
        save_file({"a": torch.zeros(3), "b": torch.zeros(2, 2)}, copy / "vae" / "model.safetensors", {"format": "pt"})
        level, message = self.judge(tmp_path, copy)
        assert (level, message.endswith("GB of weights, whole")) == (Level.OK, True)
        (copy / "model_index.json").unlink()
        level, message = self.judge(tmp_path, copy)
        assert (level, "without a model_index.json" in message) == (Level.BAD, True)
        weights = next(copy.rglob("*.safetensors"))
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size - 1)
        level, message = self.judge(tmp_path, copy)
        assert (level, f"cut off in {weights}" in message) == (Level.BAD, True)

    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        assert self.judge(tmp_path, tmp_path / "nowhere") == (Level.BAD, f"{tmp_path}/nowhere: no weights are there")

    @pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x02" + bytes(7) + b"{}x"])
    def test_what_is_no_file_of_weights(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "weights").write_bytes(content)
        assert not whole(tmp_path / "weights")


def test_the_last_run_of_a_directory(tmp_path: Path) -> None:
    assert last_run(tmp_path) is None
    with (tmp_path / "lock").open("w") as lock:
        lock.write("process 7, http://127.0.0.1:8019\nowner/music\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert last_run(tmp_path) == RUN._replace(model="owner/music")
    assert last_run(tmp_path) == RUN._replace(model="owner/music", running=False)
    (tmp_path / "lock").write_text("process 7, workers alone\n")
    assert last_run(tmp_path) == Run("process 7, workers alone", None, "bundled", running=False)


def test_a_directory_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = CliRunner().invoke(app, ["doctor", "--data-dir", "nowhere"])
    assert (named.exit_code, "has run in nowhere" in named.output) == (2, True)
