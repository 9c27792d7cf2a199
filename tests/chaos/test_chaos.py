"""The short form of `make chaos`: its seed decides what is killed, and every part is, while it holds work."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.cluster import Shape
from tests.chaos.plan import Part, Scale, plan
from tests.chaos.run import Run

SEED = 1
SCALE = Scale(kills=dict.fromkeys(Part, 1) | {Part.VALKEY: 2}, forgets=1, outage_s=8, slow_s=1.5, clients=3, window=4)
SHAPE = Shape(
    gateways=1,
    controllers=1,
    workers=1,
    settings={
        "SERINETTE_HEARTBEAT_S": "1",
        "SERINETTE_HEARTBEAT_TTL_S": "4",
        "SERINETTE_INTERVAL_S": "0.5",
        "SERINETTE_LEASE_S": "3",
    },
)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_no_job_is_lost_stuck_or_doubled_whatever_is_killed(tmp_path: Path) -> None:
    planned = plan(SEED, 45, SCALE)
    report = asyncio.run(Run(planned, SCALE, SHAPE, SEED, patience_s=240).carry_out(tmp_path))
    printed = "\n".join(report.lines())
    print(printed)
    assert report.clean, printed
    assert len(report.found) == 45
    assert report.kills == dict(SCALE.kills), "each while it held work"
    [forgot_s] = [strike.forgot_s for strike in report.strikes if strike.forgot_s]
    assert forgot_s >= 1
    assert all(strike.jobs for strike in report.strikes if strike.part in {Part.SLOT, Part.SUPERVISOR, Part.ENGINE})
