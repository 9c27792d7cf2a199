"""How many slots and encoders a worker has: the same rule in a pod and on a laptop."""

from __future__ import annotations

import pytest

from gpu_worker.settings import WorkerSettings, slots_for


@pytest.mark.parametrize(
    ("max_batch", "encoders", "slots"),
    [(1, 1, 2), (2, 1, 4), (1, 4, 5), (8, 1, 16), (8, 16, 34), (16, 16, 50), (64, 1, 64), (32, 64, 64)],
)
def test_slots_hold_two_batches_and_what_is_encoded(max_batch: int, encoders: int, slots: int) -> None:
    assert slots_for(max_batch, encoders) == slots
    assert WorkerSettings(max_batch=max_batch, encoders=encoders).slots == slots


@pytest.mark.parametrize(
    ("songs_per_s", "max_batch", "encode_s", "upload_s"), [(2, 1, 1.3, 0.1), (8, 8, 1.3, 0.1), (16, 8, 0.9, 0.1)]
)
def test_the_rule_is_enough_where_the_encoders_are(
    songs_per_s: float, max_batch: int, encode_s: float, upload_s: float
) -> None:
    encoders = round(songs_per_s * encode_s + 1)
    held = 2 * max_batch + songs_per_s * (encode_s + upload_s)  # Little's law
    assert slots_for(max_batch, encoders) >= held - 1


def test_what_is_given_stays_and_a_cpu_encodes_one_at_a_time() -> None:
    assert WorkerSettings(slots=3, encoders=7).slots == 3
    assert WorkerSettings(device="cpu").encoders == 1
    assert WorkerSettings(device="cuda").encoders >= 1
    assert WorkerSettings().model_copy(update={"slots": 9}).slots == 9
