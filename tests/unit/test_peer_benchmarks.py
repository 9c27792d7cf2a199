"""The benchmarks beside other queues, at depth and of start latency, run in their smallest form."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from redis import Redis

from benchmarks import __main__ as command
from benchmarks import depth, start_latency
from benchmarks.peers import throughput
from benchmarks.peers.load import Request, load
from tests.gateways import gateway


def test_an_answer_that_was_not_expected_ends_the_measure(tmp_path: Path, redis_url: str) -> None:
    with gateway(tmp_path, redis_url, f"file://{tmp_path}/store") as server:
        answers, took_s = load(server.port, Request("GET", "/healthz", 200, '"status"'), 0.1)
        assert answers > 0
        assert took_s >= 0.099  # a clock that is read in other places
        with pytest.raises(RuntimeError, match="404"):
            load(server.port, Request("GET", "/healthy", 200, ""), 0.1)
        with pytest.raises(RuntimeError, match="200 OK"):
            load(server.port, Request("GET", "/healthz", 200, "another word"), 0.1)


def test_submits_that_leave_no_job_end_the_measure(tmp_path: Path, redis_url: str) -> None:
    with gateway(tmp_path, redis_url, f"file://{tmp_path}/store") as server:
        turn = throughput.Turn(server.port, Request("GET", "/healthz", 200, ""), queued=lambda: 0)
        with pytest.raises(RuntimeError, match="0 jobs more"):
            turn.measured(0.1, {})


def test_a_copy_has_its_keys_and_its_place_in_everything(redis: Redis) -> None:
    job_id = "3f0c6f2e-9d43-4c0f-9a55-a1b2c3d4e5f6"
    redis.hset(f"job:{job_id}", mapping={"status": "queued"})
    redis.rpush("lane", "another", job_id)
    redis.zadd("live", {"another": 1, job_id: 5})
    redis.sadd("all", job_id)
    redis.hset("books", job_id, "a word")
    depth.fill(redis, job_id, 3)
    copies = [f"00000000-0000-4000-8000-{number:012}".encode() for number in range(3)]
    assert redis.lrange("lane", 2, -1) == copies
    assert redis.zrange("live", 2, -1) == copies
    assert redis.smembers("all") == {job_id.encode(), *copies}
    assert redis.hmget("books", copies) == [b"a word"] * 3
    assert all(redis.hgetall(b"job:" + copy) == {b"status": b"queued"} for copy in copies)


def test_rates_are_compared_round_by_round() -> None:
    rates = {"noop": [100.0, 200.0], "celery": [10.0, 40.0], "serinette": [20.0, 40.0]}
    reported = throughput.compared({name: [{"per_s": rate} for rate in own] for name, own in rates.items()})
    assert reported["serinette"]["to_celery"]["all"] == [2.0, 1.0]
    assert reported["serinette"]["to_noop"]["all"] == [0.2, 0.2]
    assert reported["celery"]["to_celery"]["median"] == 1.0


def test_the_command_is_recorded_without_the_place_of_another_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    options = command.parsed(["start-latency", "--rounds", "3", "--other", "/somewhere", "--round-s", "2"])
    given: dict[str, object] = {}
    measure: object = (lambda **words: given.update(words) or {}, command.WITH_OPTIONS["start-latency"][1])
    monkeypatch.setitem(command.WITH_OPTIONS, "start-latency", measure)
    _, reported = command.figures_of("start-latency", options)
    assert reported == "python -m benchmarks start-latency --rounds 3 --other CHECKOUT"
    assert given == {"rounds": 3, "other": Path("/somewhere")}


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parsed(["piers"])
    assert "no benchmark piers: there are" in capsys.readouterr().err


@pytest.mark.load
@pytest.mark.skipif(sys.platform != "linux", reason="pins processes to cores")
def test_all_of_them_run_small() -> None:
    peers = throughput.measure(rounds=1, round_s=0.2)
    assert peers["valkey"] == {"appendonly": "yes", "appendfsync": "always"}
    assert peers["submit"].keys() == {"noop", "celery", "rq"} | {
        f"serinette_{name}" for name in ("fsync", "process", "seed_dialect")
    }
    assert peers["poll"].keys() == {"noop", "celery", "rq", "serinette"}
    deep = depth.measure(rounds=2, jobs=2_000, appendfsync="everysec")
    assert deep["valkey"]["appendfsync"] == "everysec"
    assert all(deep["bytes_per_job"][state]["whole"] > 200 for state in ("waiting", "running", "ended"))
    starts = start_latency.measure(rounds=2, other=Path.cwd())
    assert starts["sent_to_start_this_to_other"]["count"] == 2
    assert starts["this"]["commit"] == starts["other"]["commit"]
