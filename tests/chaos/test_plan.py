"""What a seed plans, and what is cut off an append-only file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.__main__ import KILLS, scale_of
from tests.chaos.append_only import cut_at, forget, surely_on_disk
from tests.chaos.plan import Cancel, Nature, Part, plan

SEEDS = (0, 1, 7, 2_026)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_plans_one_run(seed: int) -> None:
    scale = scale_of(500, 150)
    assert plan(seed, 500, scale) == plan(seed, 500, scale)
    assert plan(seed, 500, scale) != plan(seed + 1, 500, scale)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("count", "slots"), [(500, 8), (100, 2), (40, 1)])
def test_every_part_is_killed_while_there_is_work_left(seed: int, count: int, slots: int) -> None:
    scale = scale_of(count, 150)
    faults = plan(seed, count, scale).faults
    assert Counter(fault.part for fault in faults) == scale.kills
    assert scale.kills[Part.SLOT] == slots
    assert set(KILLS) == set(Part) == {fault.part for fault in faults}
    assert [fault.after for fault in faults] == sorted(fault.after for fault in faults)
    assert all(2 <= fault.after <= count * 3 // 4 for fault in faults)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_store_is_away_for_long_once_and_valkey_forgets_last(seed: int) -> None:
    faults = plan(seed, 500, scale_of(500, 150)).faults
    assert [fault.down_s for fault in faults if fault.down_s > 2] == [150]
    forgets = [fault.forgets for fault in faults if fault.part is Part.VALKEY]
    assert forgets == [False, False, False, True, True, True]
    assert not any(fault.forgets for fault in faults if fault.part is not Part.VALKEY)


@pytest.mark.parametrize("seed", SEEDS)
def test_orders_are_of_all_kinds_and_keys_collide_between_tenants_only(seed: int) -> None:
    orders = plan(seed, 500, scale_of(500, 150)).orders
    assert {order.nature for order in orders} == set(Nature)
    assert {order.cancel for order in orders} == set(Cancel)
    assert all(order.cancel is Cancel.NEVER for order in orders if not order.nature.succeeds)
    assert {order.lane for order in orders} == {"high", "normal", "low"}
    assert any(order.webhook for order in orders)
    assert any(order.listens for order in orders)
    assert len({(order.tenant, order.key) for order in orders}) == 500
    assert len({order.key for order in orders}) == 167


LOG = b"#TS:100\r\n*1\r\nA#TS:101\r\n*1\r\n\r\n#TS:101\r\nB\r\n#TS:102\r\nC\r\n#TS:104\r\nD\r\n"


@pytest.mark.parametrize(
    ("died_at", "since", "rest"),
    [
        (104.9, 102, b"C\r\n#TS:104\r\nD\r\n"),  # 104 is not a second old, and what it wrote is lost whole
        (105.0, 104, b"D\r\n"),
        (103.2, 102, b"C\r\n#TS:104\r\nD\r\n"),
        (102.5, 101, b"B\r\n#TS:102\r\nC\r\n#TS:104\r\nD\r\n"),
        (100.1, 100, LOG.removeprefix(b"#TS:100\r\n")),  # all of it is younger than a second
    ],
)
def test_a_second_at_least_is_cut_off_and_two_at_most_of_what_was_written(
    died_at: float, since: float, rest: bytes
) -> None:
    cut = cut_at(LOG, died_at)
    assert cut is not None
    assert cut[1] == since
    assert LOG[cut[0] :] == f"#TS:{since:g}\r\n".encode() + rest


def test_an_empty_file_has_nothing_to_forget() -> None:
    assert cut_at(b"", 100.0) is None


def submitted(job_id: str) -> bytes:
    command = f"*3\r\n$5\r\nRPUSH\r\n$23\r\nrq:queue:default.normal\r\n$36\r\n{job_id}\r\n*1\r\n$4\r\nEXEC\r\n"
    return b"*1\r\n$5\r\nMULTI\r\n" + command.encode()


def test_what_was_said_to_be_on_disk_is_not_cut_off(tmp_path: Path) -> None:
    ids = [f"2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a1{number}" for number in range(3)]
    first, second, third = (b"#TS:101\r\n" + b"*1\r\n$4\r\nPING\r\n" + submitted(job_id) for job_id in ids)
    whole = first + second + third
    assert surely_on_disk(whole, []) == 0
    assert surely_on_disk(whole, ids[:2]) == len(first + second)
    (tmp_path / "appendonlydir").mkdir()
    file = tmp_path / "appendonlydir" / "appendonly.aof.1.incr.aof"
    file.write_bytes(whole)
    forget(tmp_path, 101.5, on_disk=ids[:2])
    assert file.read_bytes() == first + second
