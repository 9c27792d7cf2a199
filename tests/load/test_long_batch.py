"""A batch whose gateway and controller are killed on the way, and whose jobs are forgotten: whole all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.load.long_batch import assert_whole, long_batch


@pytest.mark.timeout(300)
def test_a_batch_outlives_its_gateway_and_its_controller(tmp_path: Path) -> None:
    """300 lines; `python -m benchmarks batch` sends 20,000."""
    run = long_batch(tmp_path, lines=300, song_s=0.02, others=2, asides=[])
    assert_whole(run)
