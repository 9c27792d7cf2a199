"""What is measured on a GPU, before the first: the full size put together, and all of it run small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.engine import backlog, cold_start, floor, gpu, speed
from benchmarks.engine.cases import Case
from benchmarks.engine.full_size import SIZES, assemble, build
from benchmarks.engine.gpu_bench import SMALL, Bench

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
    ):
        assert name in written["figures"], name
    assert written["figures"]["alone_again_same_bits"]
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
