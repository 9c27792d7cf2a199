"""What is measured on a GPU, before the first: the full size put together, and all of it run small."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks import page
from benchmarks.engine import backlog, cold_start, feeding, floor, gpu, gpu_bench, speed, turns
from benchmarks.engine.cases import BETWEEN_RUNS, Case, as_engine
from benchmarks.engine.full_size import SIZES, assemble, build
from benchmarks.engine.gpu_bench import SMALL, Bench
from benchmarks.peers.servers import ROOT
from benchmarks.record import commit
from gpu_worker.engine.ace_step.loading import settle_kernels
from gpu_worker.engine.interface import SongRequest, StepObserver
from gpu_worker.process_setup import engine_environment
from serinette.job import Stage
from tests.engines import SineEngine

# Several processes load torch: a machine that is busy takes minutes for them.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The GPU's case, on a CPU and small."""
    directory = tmp_path_factory.mktemp("tiny")
    return Case(
        model=str(build(directory / "model", SMALL, "cpu")),
        device="cpu",
        durations_s=(1.0,),
        batches=(1, 2),
        backlog_durations_s=(1.0,),
        backlog_songs=4,
        backlog_ways=((1, 1), (4, 2)),
        compile=True,
        runs=1,
        directory=directory,
        metrics_settle_s=0,
        first_song_s=1.0,
    )


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and in those below: torch.compile gives back what it was given."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)


@pytest.mark.parametrize(("size", "billions"), [("turbo", 1.575), ("xl", 4.169)])
def test_the_full_size_is_put_together(size: str, billions: float) -> None:
    pipe = assemble(SIZES[size], "meta")
    assert pipe.transformer.dtype is torch.bfloat16
    weights = sum(weight.numel() for weight in pipe.transformer.parameters())
    assert weights / 1e9 == pytest.approx(billions, abs=0.01)
    assert pipe.latents_per_second == 25
    # What the denoiser is given fits it.
    assert pipe.condition_encoder.silence_latent.shape[-1] == pipe.vae.config.decoder_input_channels
    assert 3 * pipe.vae.config.decoder_input_channels == pipe.transformer.config.in_channels


def test_an_h200_is_planned_and_its_floor_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (130 * 2**30, 141 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    bench = Bench(tmp_path / "gpu.json", "turbo", 60)
    bench.gpu, bench.song_s, bench.pipe = True, 60.0, assemble(SIZES["turbo"], "meta")
    bench.engine = SineEngine(tmp_path)
    made = bench.planned()
    assert (made.windows.at_once, made.longest_s, made.songs(600)) == (16, 600, 15)
    # 18.9 ms of arithmetic for the eight steps of a minute.
    assert bench.with_floor(1, {"denoise_ms": 37.8})["denoiser_share_of_floor"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.load
def test_the_engine_is_measured_with_its_share_of_a_cards_floor(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in {
        "is_available": True,
        "get_device_name": "NVIDIA H100 80GB HBM3",
        "max_memory_allocated": 2**30,
        "reset_peak_memory_stats": None,
        "synchronize": None,
        "empty_cache": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    # So slow that the share of it is more than nothing.
    monkeypatch.setattr(floor, "card", lambda _name: floor.Card(1e6, 1e6))
    figures = speed.measure(case)
    for row in figures["eager"] + figures["compiled"]:
        assert row["peak_mib"] == 1024
        assert row["sing_s"] > 0
    assert [(row["duration_s"], row["batch"]) for row in figures["compiled"]] == [(1.0, 1), (1.0, 2)]
    assert figures["best_denoiser_share_of_floor"] > 0


@pytest.mark.load
def test_a_pod_under_backlog_is_measured_beside_the_plain_loop(case: Case) -> None:
    figures = backlog.measure(replace(case, compile=False))
    assert [(row["slots"], row["max_batch"]) for row in figures["pod"]] == [(1, 1), (4, 2)]
    assert all(row["songs_per_min"] > 0 and row["engine_busy_share"] >= 0 for row in figures["pod"])
    assert [row["batch"] for row in figures["plain"]] == [1, 2]
    (ratios,) = figures["ratios"]
    assert ratios["to_plain"] >= ratios["to_plain_at_its_best"] > 0
    assert ratios["overlap"] > 0


@pytest.mark.load
def test_a_cold_start_is_listed_apart(case: Case) -> None:
    figures = cold_start.measure(case)
    for way in ("eager", "compiled_first", "compiled_again"):
        assert {"import_s", "load_s", "first_song_s", "second_song_s", "whole_process_s"} == figures[way].keys()
        assert min(figures[way].values()) > 0


@pytest.mark.load
def test_the_ten_minutes_on_a_gpu_are_run_small(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["failed"] == {}
    assert written["machine"]["versions"]["torch"]
    for name in (
        "stock_songs_per_min",
        "eager_batch_1",
        "novel_to_known",
        "batch_to_alone_rms_share",
        "backlog_flac_songs_per_min",
        "windows_to_whole",
        "compiled_batch_2",
        "backlog_eager",
        "planner_tokens_per_s_2_rows",
        "planner_tokens_per_s_16_rows",
    ):
        assert name in written["figures"], name
    assert written["figures"]["alone_again_same_bits"]
    assert written["figures"]["batch_to_alone_rms_share"] == max(written["figures"]["batch_to_alone_rms_shares"])
    assert written["figures"]["windows_to_whole"] < 0.02  # in bf16


def test_parts_without_time_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PARTS", tuple((name, 60.0, work) for name, _, work in gpu.PARTS))
    monkeypatch.setattr(Bench, "needs", lambda _bench, on_a_gpu_s: on_a_gpu_s)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out), "--budget", "5"]) == 1
    written = json.loads(out.read_text())
    assert written["figures"] == {}
    assert all(why.startswith("left out: ") for why in written["failed"].values())
    assert len(written["failed"]) == len(gpu.PARTS)


def test_what_went_before_is_of_the_ten_minutes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PARTS", (("one", 0.0, lambda bench: bench.note("one", 1)),))
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out), "--budget", "5"], spent_s=6) == 1
    assert json.loads(out.read_text())["failed"]["one"].startswith("left out: -1 s are left of 5")
    monkeypatch.setattr(gpu_bench, "BUDGET_S", 1e9)  # this process may be older than a run may take
    own_s = time.time() - psutil.Process().create_time()
    assert gpu_bench.process_age_s() == pytest.approx(own_s, abs=2)


def test_it_is_measured_in_an_engines_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda _program, command, environment: begun.append((command, environment)))
    wanted = engine_environment(BETWEEN_RUNS)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    as_engine("benchmarks.engine.gpu", ["--size", "xl"])
    assert begun == []
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    as_engine("benchmarks.engine.gpu", ["--size", "xl"])
    ((command, environment),) = begun
    assert command[1:] == ["-m", "benchmarks.engine.gpu", "--size", "xl"]
    assert environment["MALLOC_MMAP_THRESHOLD_"] == wanted["MALLOC_MMAP_THRESHOLD_"]
    assert environment["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_part_that_hangs_leaves_the_others_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "needs", lambda _bench, on_a_gpu_s: on_a_gpu_s)
    parts = (("hangs", 0.1, lambda _: time.sleep(600)), ("later", 0.1, lambda bench: bench.note("later", 1)))
    monkeypatch.setattr(gpu, "PARTS", parts)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out), "--budget", "300"]) == 1
    written = json.loads(out.read_text())
    assert written["figures"] == {"later": 1}
    assert "TimeoutError" in written["failed"]["hangs"]


def test_a_part_that_hangs_is_ended_when_the_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(bench: Bench) -> None:
        bench.note("before", 1)
        time.sleep(600)

    monkeypatch.setattr(gpu, "PARTS", (("hangs", 0.0, hang), ("later", 0.0, hang)))
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out), "--budget", "0.5"]) == 1
    written = json.loads(out.read_text())
    assert written["figures"] == {"before": 1}
    assert "TimeoutError" in written["failed"]["hangs"]
    assert written["failed"]["later"].startswith("left out: ")
    assert (written["doing"], written["commit"]) == ("", commit())


@pytest.mark.load
def test_a_call_that_never_comes_back_ends_the_process_and_is_named(tmp_path: Path) -> None:
    script = (
        "import ctypes, sys; from benchmarks.engine import gpu_bench; gpu_bench.GRACE_S = 0.2\n"
        "bench = gpu_bench.Bench(gpu_bench.Path(sys.argv[1]), 'turbo', 0.2)\n"
        "bench.part('stuck', 0.0, lambda _: ctypes.PyDLL(None).sleep(600))"
    )
    # A handler of the alarm would wait for the call: it is blocked, as a driver that does not heed signals has it.
    block = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"
    done = subprocess.run(
        [sys.executable, "-c", block + script, str(tmp_path / "out.json")],
        check=False,
        timeout=300,
        capture_output=True,
    )
    assert done.returncode == 1
    assert json.loads((tmp_path / "out.json").read_text())["doing"] == "stuck"


def test_a_gpus_result_is_shown_and_put_into_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    updated: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "update", lambda: updated.append(True))
    figures = {"backlog_flac_songs_per_min": 812.4, "backlog_busy_share": 0.97}
    monkeypatch.setattr(gpu, "PARTS", (("one", 0.0, lambda bench: [bench.note(*each) for each in figures.items()]),))
    assert gpu.main(["--out", str(tmp_path / "2026-01-01-gpu.json")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"60 s songs with flac under backlog +812 a minute +at least 640", shown)
    assert re.search(r"a novel length and text, ratio to a known one +NOT MEASURED +at most 1.2", shown)
    assert updated == [True]


class Noted:
    """An engine that notes how long songs are to be."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    def generate_all(self, batch: list[SongRequest], observe: StepObserver) -> None:
        self.asked_s += [request.spec.duration_s for request in batch]
        observe(Stage.DECODING, None, None)


def test_what_is_novel_is_as_much_music_as_what_is_known(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "gpu.json", "turbo", 60)
    bench.engine, bench.song_s = Noted(), 60.0
    gpu.novel(bench)
    *known, first, second = bench.engine.asked_s
    assert set(known) == {60.0}
    assert (first, second) == (pytest.approx(60.6), pytest.approx(59.4))


def test_a_long_songs_memory_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the most that any part before has taken."""
    bench = Bench(tmp_path / "gpu.json", "turbo", 60)
    bench.gpu, bench.engine, most_gib = True, Noted(), [80.0]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: most_gib.append(1.0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: most_gib[-1] * 2**30)
    gpu.long(bench)
    assert bench.figures["song_of_400_s_peak_gib"] == bench.figures["song_of_600_s_peak_gib"] == 1.0


def test_what_is_measured_is_what_a_worker_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are chosen for the same bits, and graphs without what each batch has of its own."""
    bench = Bench(tmp_path / "gpu.json", "turbo", 60)
    settled: list[torch.device] = []
    monkeypatch.setattr(gpu, "settle_kernels", settled.append)
    gpu.made_ready(bench)
    assert settled == [torch.device("cpu")]
    compiled: list[object] = []

    def keep(forward: object, **_: object) -> object:
        compiled.append(forward)
        return forward

    monkeypatch.setattr(torch, "compile", keep)
    try:
        gpu.compiled(bench)
    finally:
        torch.compiler.set_stance("default")
    decoder = bench.pipe.vae.decoder
    assert len(compiled) == len(bench.pipe.transformer.layers) + 1
    assert not any(block._forward_pre_hooks for block in decoder.block)
    assert decoder._forward_pre_hooks


def test_cudnn_is_bound_to_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("deterministic", False), ("benchmark", True)):
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    settle_kernels(torch.device("cpu"))
    assert not torch.backends.cudnn.deterministic
    settle_kernels(torch.device("cuda"))
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_songs_of_the_backlog_are_handed_over_and_encoded_elsewhere(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "gpu.json", "turbo", 60)
    bench.engine = SineEngine(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    gpu.backlog(bench)
    assert bench.figures["backlog_flac_songs_per_min"] > 0
    assert 0 < bench.figures["backlog_busy_share"] <= 1
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_file_that_cannot_be_made_is_no_song(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path / "gpu.json", "turbo", 60)
    bench.engine = SineEngine(tmp_path)
    monkeypatch.setattr(gpu, "_encoded", None)
    with pytest.raises(TypeError):
        gpu.backlog(bench)
    assert "backlog_flac_songs_per_min" not in bench.figures


def test_without_pyav_the_backlog_is_measured_without_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "ENCODES", False)
    monkeypatch.setattr(gpu, "_encoded", None)
    bench = Bench(tmp_path / "gpu.json", "turbo", 60)
    bench.engine = SineEngine(tmp_path)
    bench.figures["stock_songs_per_min"] = 10
    gpu.backlog(bench)
    assert bench.figures["backlog_encoded"].startswith("nothing")
    assert bench.figures["backlog_songs_per_min_without_encoding"] > 0
    assert {"backlog_busy_share", "backlog_to_stock_songs_per_min"} <= bench.figures.keys()
    assert "backlog_flac_songs_per_min" not in bench.figures


@pytest.mark.parametrize(
    ("path", "missing"), [("gpu_worker/engine/ace_step/adapters.py", "peft"), ("benchmarks/record.py", "psutil")]
)
def test_a_gpus_machine_needs_neither_peft_nor_psutil(path: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    spec = importlib.util.spec_from_file_location("alone", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "alone", module)
    spec.loader.exec_module(module)


def test_a_gpus_machine_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() == ""


def test_another_pythons_torch_is_measured_without_installing_ours() -> None:
    command = ["make", "--no-print-directory", "-n", "bench-gpu", "PYTHON=another"]
    plan = subprocess.run(command, check=True, capture_output=True, text=True)
    assert plan.stdout.strip() == "another -m benchmarks.engine.gpu"


@pytest.mark.load
def test_two_checkouts_engines_generate_in_turns(case: Case) -> None:
    """This one twice: what answers is a process of each."""
    checkouts = {"this": ROOT, "other": ROOT}
    rows = turns.alone(replace(case, turns=((1.0, 1),)), checkouts, case.model, rounds=1)
    assert [(row["duration_s"], row["batch"]) for row in rows] == [(1.0, 1)]
    assert rows[0]["speed_this_to_other"]["count"] == rows[0]["cpu_other_to_this"]["count"] == 1


@pytest.mark.load
def test_an_engine_of_known_speed_is_fed_by_real_slots() -> None:
    fed = feeding.Feed(songs_per_s=4, max_batch=2, encoders=2, encode_s=0.2)
    figures = feeding.measured(fed, feeding.slots_of(fed), seconds=3)
    assert 0 < figures["engine_busy_share"] <= 1.01
    assert 0 < figures["generated_to_nominal"] <= 1.1  # a batch may end just after the first look, and before the last
    # Two slots that sleep 1.3 s a song hold 1.4 songs a second, however quick all else is.
    assert feeding.measured(feeding.STARVED, 2, seconds=2)["generated_to_nominal"] < 0.5
