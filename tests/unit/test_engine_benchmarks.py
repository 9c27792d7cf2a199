"""What `make bench-gpu` runs, before its first GPU: the full size put together, and all of it run small."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.engine import backlog, cold_start, floor, speed
from benchmarks.engine.cases import Case
from benchmarks.engine.full_size import SIZES, Sizes, assemble, build

_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
_BODY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, **_ATTENTION}
TINY = Sizes(
    transformer={**_BODY, "num_hidden_layers": 2, "in_channels": 24, "audio_acoustic_hidden_dim": 8},
    text={**_BODY, "vocab_size": 257, "num_hidden_layers": 1, "max_position_embeddings": 4096},
    vae={
        "encoder_hidden_size": 16,
        "decoder_channels": 4,
        "decoder_input_channels": 8,
        "channel_multiples": [1, 2, 4, 8, 8],
        "downsampling_ratios": [2, 4, 4, 6, 10],
        "sampling_rate": 48_000,
    },
    conditions={
        **_BODY,
        "text_hidden_dim": 64,
        "timbre_hidden_dim": 8,
        "num_lyric_encoder_hidden_layers": 1,
        "num_timbre_encoder_hidden_layers": 1,
    },
)
# Several processes load torch: a machine that is busy takes minutes for them.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The GPU's case, on a CPU and small."""
    directory = tmp_path_factory.mktemp("tiny")
    return Case(
        model=str(build(directory / "model", TINY, "cpu")),
        device="cpu",
        durations_s=(1.0,),
        batches=(1, 2),
        backlog_durations_s=(1.0,),
        backlog_songs=4,
        backlog_batch=2,
        compile=True,
        runs=1,
        directory=directory,
        metrics_settle_s=0,
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


def test_a_pod_under_backlog_is_measured_beside_the_plain_loop(case: Case) -> None:
    figures = backlog.measure(replace(case, compile=False))
    assert [(row["slots"], row["max_batch"]) for row in figures["pod"]] == [(1, 1), (2, 1), (4, 2)]
    assert all(row["songs_per_min"] > 0 and row["engine_busy_share"] >= 0 for row in figures["pod"])
    assert [row["batch"] for row in figures["plain"]] == [1, 2]
    (ratios,) = figures["ratios"]
    assert ratios["to_plain"] >= ratios["to_plain_at_its_best"] > 0


def test_a_cold_start_is_told_apart(case: Case) -> None:
    figures = cold_start.measure(case)
    for way in ("eager", "compiled_first", "compiled_again"):
        assert {"import_s", "load_s", "first_song_s", "second_song_s", "whole_process_s"} == figures[way].keys()
        assert min(figures[way].values()) > 0
