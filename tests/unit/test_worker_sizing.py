"""How many slots and encoders a worker has: the same rule in a pod and on a laptop."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_worker import settings
from gpu_worker.settings import Sizing, WorkerSettings, sizing_for, usable_cores


@pytest.mark.parametrize(
    ("max_batch", "encoders", "slots"),
    [(1, 1, 2), (2, 1, 4), (1, 4, 5), (8, 1, 16), (8, 16, 34), (16, 16, 50), (64, 1, 64), (32, 64, 64)],
)
def test_slots_hold_two_batches_and_what_is_encoded(max_batch: int, encoders: int, slots: int) -> None:
    assert sizing_for(gpu=True, cores=3, max_batch=max_batch, encoders=encoders).slots == slots
    assert WorkerSettings(max_batch=max_batch, encoders=encoders).slots == slots


@pytest.mark.parametrize(
    ("songs_per_s", "max_batch", "encode_s", "upload_s"), [(2, 1, 1.3, 0.1), (8, 8, 1.3, 0.1), (16, 8, 0.9, 0.1)]
)
def test_the_rule_is_enough_where_the_encoders_are(
    songs_per_s: float, max_batch: int, encode_s: float, upload_s: float
) -> None:
    encoders = round(songs_per_s * encode_s + 1)
    held = 2 * max_batch + songs_per_s * (encode_s + upload_s)  # Little's law
    assert sizing_for(gpu=True, cores=encoders, max_batch=max_batch).slots >= held - 1


@pytest.mark.parametrize(
    ("gpu", "cores", "given", "sizing"),
    [
        (False, 1, {}, Sizing(1, 1, 2)),
        (False, 64, {}, Sizing(1, 1, 2)),
        (False, 64, {"max_batch": 4}, Sizing(4, 1, 8)),
        (True, 1, {}, Sizing(8, 1, 16)),
        (True, 4, {}, Sizing(8, 4, 19)),
        (True, 16, {}, Sizing(8, 16, 34)),
        (True, 16, {"max_batch": 1}, Sizing(1, 16, 20)),
        (True, 1024, {}, Sizing(8, 256, 64)),
        (True, 16, {"encoders": 2, "slots": 3}, Sizing(8, 2, 3)),
    ],
)
def test_the_rule(gpu: bool, cores: int, given: dict[str, int], sizing: Sizing) -> None:
    assert sizing_for(gpu=gpu, cores=cores, **given) == sizing


@pytest.mark.parametrize(("device", "gpu"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_a_worker_is_sized_by_its_device_and_its_containers_cores(
    device: str, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "usable_cores", lambda: 4)
    made = WorkerSettings(device=device)
    assert Sizing(made.max_batch, made.encoders, made.slots) == sizing_for(gpu=gpu, cores=4)


def test_torch_without_cuda_is_on_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.exists", lambda _: True)
    for version, gpu in (("2.13.0+cpu", False), ("2.13.0+cu130", True)):
        monkeypatch.setattr(settings, "version", lambda _, version=version: version)
        assert settings.on_gpu("auto") is gpu


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 64),
        ({"a/cpu.max": "max 100000", "a/pod/cpu.max": "800000 100000", "a/pod/one/cpu.max": "max 100000"}, 8),
        ({"a/cpu.max": "200000 100000", "a/pod/cpu.max": "800000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu.max": "nonsense"}, 64),
    ],
)
def test_a_quota_bounds_the_cores(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cores(tmp_path, "/a/pod/one") == cores


def test_what_is_given_stays() -> None:
    assert WorkerSettings(slots=3, encoders=7, max_batch=5).max_batch == 5
    assert WorkerSettings(slots=3, encoders=7).slots == 3
    assert WorkerSettings().model_copy(update={"slots": 9}).slots == 9
