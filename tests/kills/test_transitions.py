"""Transitions against: wrong values, lost answers, no memory, other clocks, RQ's CLI."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from controller.webhooks import Outbox
from serinette.batch import BatchHeader
from serinette.job import JobError, JobStatus, now
from serinette.jobs import AttemptState, Call, Claimed, Entry, Jobs, Lease, Outcome, calls
from serinette.jobs.finishing import record_of
from serinette.jobs.submission import rq_fields_of
from serinette.names import Keys, Lane
from tests import servers
from tests.jobs import TENANT, Board, submission
from tests.kills.deaths import interrupted
from tests.unit.slot_bench import a_result

QUEUE = "rq:queue:default.normal"
SLOT, LIVE = "pod-1.0.abc", Lease("pod-1.0.abc", 20)
TRANSITIONS = Path(calls.__file__).parent / "transitions"
BATCH = BatchHeader(id="batch-1", tenant=TENANT, attempts=1, total=1, part_lines=1, digest="", created_at=now())
FAILURE = JobError(code="timeout", message="too long")


@pytest.fixture
def board(redis: Redis, keys: Keys) -> Board:
    return Board(redis, keys)


# -- a wrong value for each argument changes nothing


def every_call(board: Board) -> dict[str, Call[Any]]:
    """One of each transition, each of which would change something now. A fresh server, and its jobs."""
    waiting, running, ended, done = (board.submit(job_id) for job_id in ("waiting", "running", "ended", "done"))
    board.jobs(calls.take(running, "attempt-running", LIVE))
    held = board.entry(running)
    assert [board.cancel(job_id) for job_id in (ended, done)] == ["canceled"] * 2
    board.jobs(calls.finish(done, "", Outcome(JobStatus.CANCELED), recorded=True))
    board.redis.zrem(board.keys.unrecorded, done)
    board.redis.lrem(QUEUE, 0, waiting)
    record = record_of(held, held.attempts[-1], Outcome(JobStatus.FAILED, FAILURE))
    gone = record.model_copy(update={"job_id": "gone"})
    rq_fields = rq_fields_of("unknown", "default", Lane.NORMAL, "song", (60, 3600, 3))
    forgotten = Entry("unknown", held.fields)
    given: dict[str, Any] = {"start_deadline_s": 5, "webhook": "https://example.com/", "batch": ("batch-1", 7)}
    return {
        "submit": calls.submit(submission("new", **given), max_waiting=10),
        "claim": calls.claim("attempt-new", LIVE, "default", [Lane.NORMAL]),
        "take": calls.take(waiting, "attempt-new", LIVE),
        "recorded": calls.recorded(board.entry(ended)),
        "beat": calls.beat(running, "attempt-running", LIVE, '{"stage": "denoising"}'),
        "resume": calls.resume(forgotten, "attempt-unknown", LIVE, rq_fields),
        "release": calls.release(running, "attempt-running", FAILURE, charged=True, gpu_s=1.5),
        "finish": calls.finish(
            running,
            "attempt-running",
            Outcome(JobStatus.SUCCEEDED, result=a_result(running)),
            recorded=True,
            additions=[("run_seconds|default|1", 1), ("run_seconds|default|sum", 0.5)],
        ),
        "cancel": calls.cancel(running, TENANT),
        "overdue": calls.overdue(20),
        "lapse": calls.lapse(SLOT),
        "heal": calls.heal("default.normal"),
        "move": calls.move(waiting, "default", "turbo"),
        "restore": calls.restore(gone, 60),
        "shrink": calls.shrink(board.entry(done)),
        "erase": calls.erase(ended, TENANT),
        "enter_batch": calls.enter_batch(BATCH, 10, {"header": "{}"}, fsync=False),
        "guarded": calls.guarded([(["HGET", board.keys.job(waiting), "state"], "queued")], [["SET", "changed", 1]]),
    }


NAMES = (
    *("submit", "claim", "take", "beat", "resume", "release", "finish", "cancel", "overdue", "lapse", "heal", "move"),
    *("restore", "shrink", "erase", "recorded", "enter_batch", "guarded"),
)


def missing_ends(call: Call[Any]) -> Iterator[list[Any]]:
    """Its arguments, cut short before each of those that it cannot do without."""
    optional = {"claim": 1, "cancel": 0}.get(call.name, 0)
    least = {"submit": 5, "resume": 5, "restore": 5, "finish": 15, "enter_batch": 4}
    most = least.get(call.name, len(call.arguments) - optional)
    for length in range(min(most, len(call.arguments))):
        yield list(call.arguments[:length])


# Where the record's fields begin is said by an argument before them; these of them the script reads as numbers.
COUNT_AT = 4
READ = {
    "submit": {"ttl_s", "schema", "start_in_s", "webhook_after_s", "line"},
    "resume": {"ttl_s", "created_at", "attempts"},
    "restore": {"created_at", "ended_at"},
}


def wrong_numbers(call: Call[Any]) -> Iterator[list[Any]]:
    """Its arguments, each number in turn replaced by what is none."""
    given = list(call.arguments)
    places = [at for at, value in enumerate(given) if isinstance(value, int | float)]
    if call.name in READ:
        first = COUNT_AT + 1 + int(given[COUNT_AT])
        fields = {given[at]: at + 1 for at in range(first, len(given), 2)}
        assert fields.keys() >= READ[call.name]
        places = [at for at in places if at <= COUNT_AT] + [fields[name] for name in sorted(READ[call.name])]
    for at in places:
        for wrong in ("x", "", "nan", "inf", "1.5.5", "-1", "0x10", "1e30"):
            yield [*given[:at], wrong, *given[at + 1 :]]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_value_changes_nothing(board: Board, name: str) -> None:
    call = every_call(board)[name]
    before = board.state()
    tried = 0
    for arguments in (*missing_ends(call), *wrong_numbers(call), *wrong_choices(call), *torn(call)):
        tried += 1
        with pytest.raises(ResponseError, match=r"must be|missing|lacks"):
            board.jobs(Call(name, arguments, call.parse))
        assert board.state() == before, arguments
    assert tried > 1
    board.jobs(call)
    assert board.state() != before, "as it stands, it changes something"


def wrong_choices(call: Call[Any]) -> Iterator[list[Any]]:
    """Words of a closed vocabulary replaced by another."""
    places = {"release": 2, "finish": 2, "restore": 1, "recorded": 1}
    if call.name in places:
        at = places[call.name]
        yield [*call.arguments[:at], "unheard of", *call.arguments[at + 1 :]]


def torn(call: Call[Any]) -> Iterator[list[Any]]:
    """A field without its value."""
    with_fields = {"submit", "resume", "restore", "enter_batch"}
    if call.name in with_fields or (call.name == "finish" and len(call.arguments) > 16):
        yield list(call.arguments[:-1])


@pytest.mark.parametrize("answer", ["running", "", "queued "])
def test_a_guard_that_does_not_hold_keeps_all_commands_from_being_run(board: Board, answer: str) -> None:
    job_id = board.submit()
    state = ["HGET", board.keys.job(job_id), "state"]
    before = board.state()
    assert not board.jobs(calls.guarded([(state, "queued"), (state, answer)], [["SET", "a", 1], ["SET", "b", 2]]))
    assert board.state() == before
    nowhere = ["HGET", board.keys.job("nowhere"), "state"]
    assert board.jobs(calls.guarded([(state, "queued"), (nowhere, "")], [["SET", "a", 1], ["SET", "b", 2]]))
    assert board.redis.mget("a", "b") == [b"1", b"2"]


def test_there_is_no_other_transition(board: Board) -> None:
    text = "".join(each.read_text() for each in TRANSITIONS.glob("*.lua"))
    assert sorted(re.findall(r"^function transitions\.(\w+)", text, re.MULTILINE)) == sorted([*NAMES, "look"])
    before = board.state()
    with pytest.raises(ResponseError, match="no transition"):
        board.jobs(Call("forget", ["job"], bool))
    assert board.state() == before


def test_an_error_of_the_script_names_file_and_line(board: Board) -> None:
    with pytest.raises(ResponseError, match=r"dispatch\.lua:\d+") as raised:
        board.jobs(Call("guarded", ["[1]", "[]"], bool))
    line = int(str(raised.value).partition("dispatch.lua:")[2].partition(":")[0])
    assert "guard[1]" in (TRANSITIONS / "dispatch.lua").read_text().splitlines()[line - 1]


def test_a_number_that_no_float_holds_is_read_back_as_written(board: Board) -> None:
    made = submission(None, digest="9007199254740993", labels={"empty": "x"})
    board.jobs(calls.submit(made))
    entry = board.entry(made.id)
    assert entry.digest == "9007199254740993"
    assert entry.fields["spec"] == made.fields["spec"]


# -- a full server


@pytest.fixture
def full(board: Board) -> Iterator[Callable[[], None]]:
    """Makes the server full, as its operator bounded it."""

    def fill() -> None:
        board.redis.config_set("maxmemory-policy", "noeviction")
        board.redis.config_set("maxmemory", 1024 * 1024)

    yield fill
    board.redis.config_set("maxmemory", 0)


def test_a_full_server_takes_no_job_and_ends_those_that_it_has(board: Board, full: Callable[[], None]) -> None:
    ids = [board.submit() for _ in range(6)]
    claimed = [board.claim(f"pod-1.{number}.abc") for number in range(4)]
    board.redis.zadd(board.keys.webhooks, {"an end to report": 1})
    outbox = Outbox(board.redis, board.keys)
    full()
    before = board.state()
    with pytest.raises(ResponseError, match=r"OOM|maxmemory"):
        board.jobs(calls.submit(submission()))
    assert board.state() == before, "it was refused before its first write"
    assert all(claimed)
    beating, released, finished, canceled = (each for each in claimed if each)
    assert board.beat(beating, '{"stage": "denoising"}') is AttemptState.MINE
    release = calls.release(released.entry.id, released.entry.owner or "", FAILURE, charged=True)
    assert board.jobs(release) is AttemptState.RELEASED
    board.finish(finished, Outcome(JobStatus.SUCCEEDED, result=a_result(finished.entry.id)), recorded=True)
    assert board.cancel(canceled.entry.id) == "running"
    assert board.cancel(ids[5]) == "canceled"
    assert board.claim("pod-2.0.abc"), "what waits can be generated"
    board.jobs(calls.overdue(20))
    assert board.jobs(calls.shrink(board.entry(finished.entry.id))), "which makes room"
    assert outbox.take(30, 10) == ["an end to report"]
    outbox.drop("an end to report")
    assert board.redis.zcard(board.keys.webhooks) == 0


# -- answers that are lost


class Lost:
    """The server executes the call, and its answer never arrives."""

    def __init__(self, board: Board) -> None:
        self._jobs = board.jobs

    def __call__(self, call: Call[Any]) -> None:
        """Once; the caller then asks again."""
        self._jobs(call)


def test_a_claim_whose_answer_was_lost_is_answered_the_same_job(board: Board) -> None:
    first, second = board.submit(), board.submit()
    call = calls.claim("attempt-1", LIVE, "default", [Lane.NORMAL])
    Lost(board)(call)
    again = board.jobs(call)
    assert isinstance(again, Claimed)
    assert (again.entry.id, again.number, board.entry(first).attempts[-1].number) == (first, 1, 1)
    assert board.waiting() == [second]
    other = board.jobs(calls.claim("attempt-2", LIVE, "default", [Lane.NORMAL]))
    assert isinstance(other, Claimed) and other.entry.id == second


@pytest.mark.parametrize(
    "name", ["submit", "take", "beat", "release", "finish", "cancel", "resume", "restore", "erase"]
)
def test_whatever_is_sent_again_happens_once(board: Board, name: str) -> None:
    call = every_call(board)[name]
    Lost(board)(call)
    events = {key: board.redis.xlen(key) for key in board.redis.keys("rq:serinette:events:*")}
    indexes = {key: board.redis.zcard(key) for key in board.redis.scan_iter(_type="zset")}
    counted = board.redis.hgetall(board.keys.counters)
    for _ in range(2):
        board.jobs(call)
    if name != "beat":  # which reports its progress once more
        assert {key: board.redis.xlen(key) for key in board.redis.keys("rq:serinette:events:*")} == events
    assert {key: board.redis.zcard(key) for key in board.redis.scan_iter(_type="zset")} == indexes
    assert board.redis.hgetall(board.keys.counters) == counted


class Breaking:
    """A connection that breaks once, after so many sendings."""

    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self) -> None:
        self._left -= 1
        if self._left == -1:
            raise RedisConnectionError("gone")


def test_a_connection_that_breaks_before_or_behind_a_transition_costs_nothing(board: Board, redis_url: str) -> None:
    for dies_at in range(3):
        with interrupted(redis_url, Breaking(dies_at)) as shaky:
            job_id = f"job-{dies_at}"
            try:
                Jobs(shaky, "rq")(calls.submit(submission(job_id)))
            except RedisConnectionError:
                board.jobs(calls.submit(submission(job_id)))
        assert board.waiting().count(job_id) == 1


def test_the_script_is_known_again_after_a_restart_of_the_server(board: Board) -> None:
    job_id = board.submit()
    board.redis.script_flush()
    claimed = board.claim(SLOT)
    assert claimed and claimed.entry.id == job_id


def test_a_replay_waits_for_the_disk_like_the_first(tmp_path: Path) -> None:
    """WAITAOF waits for what its connection wrote: a replay that writes nothing would be promised at once."""
    durable = servers.valkey(tmp_path / "durable", append_only=True)
    with durable as server, Redis.from_url(server.connection_url) as redis:
        jobs = Jobs(redis, "rq")
        made = submission("job")
        jobs(calls.submit(submission("another")))  # the server knows the script
        for again in (False, True):
            before = redis.info("persistence")["aof_current_size"]
            with redis.pipeline(transaction=False) as pipe:
                pipe.execute_command(*calls.submit(made, fsync=True).command("rq"))
                pipe.execute_command("WAITAOF", 1, 0, 5_000)
                answer, disk = pipe.execute()
            assert disk[0] == 1
            found = calls.submit(made).parse(answer)
            assert (found.known is not None) is again
            assert redis.info("persistence")["aof_current_size"] > before, "it wrote something"
        redis.config_set("appendonly", "no")
        assert jobs(calls.submit(submission("other"), fsync=True)).no_disk
        assert jobs(calls.look(["other"]))[0].entry is None, "it was refused before its first write"


# -- clocks


@pytest.mark.parametrize("offset_s", [-60, 60])
def test_a_server_with_another_clock_takes_no_job_from_a_slot_that_is_well(board: Board, offset_s: int) -> None:
    """A failover: the new primary's clock is ahead or behind, and all that was written is by the old one's."""
    board.submit()
    claimed = board.claim(SLOT)
    assert claimed
    board.jobs(calls.overdue(20))
    shift_clock(board, offset_s)
    assert board.jobs(calls.overdue(20)) == []
    [lease] = board.leases().values()
    at = board.redis.time()[0]
    assert 18 < lease - at < 22, "one life from now on, neither longer nor shorter"
    assert board.beat(claimed) is AttemptState.MINE
    board.lapse_leases()
    assert board.jobs(calls.overdue(20)) == [(claimed.entry.id, claimed.entry.owner)]


def shift_clock(board: Board, offset_s: int) -> None:
    """The clock goes by so much: whatever was written before is that much younger or older."""
    for key in ("rq:serinette:watched", "rq:serinette:extended"):
        board.redis.set(key, float(board.redis.get(key) or 0) - offset_s)
    for member in board.leases():
        board.redis.zincrby(board.keys.leases, -offset_s, member)


def test_controller_and_worker_dead_together_cost_one_attempt_once_a_controller_watches(board: Board) -> None:
    board.submit()
    claimed = board.claim(SLOT)
    assert claimed
    board.jobs(calls.overdue(20))
    shift_clock(board, 30)  # no controller watched, no slot beat
    assert board.jobs(calls.overdue(20)) == []
    shift_clock(board, 9)
    assert board.jobs(calls.overdue(20)) == []
    board.redis.set("rq:serinette:watched", board.redis.time()[0] - 2)
    board.lapse_leases()
    assert board.jobs(calls.overdue(20)) == [(claimed.entry.id, claimed.entry.owner)]


def test_a_dead_workers_job_is_found_also_where_every_round_comes_late(board: Board) -> None:
    """A lease is extended for one gap; after another without a heartbeat it expires."""
    board.submit()
    claimed, living = board.claim(SLOT), None
    board.submit()
    living = board.claim("pod-1.1.abc")
    assert claimed and living
    board.jobs(calls.overdue(20))
    for _ in range(2):
        shift_clock(board, 30)
        board.beat(living, "pod-1.1.abc")
        found = board.jobs(calls.overdue(20))
    assert found == [(claimed.entry.id, claimed.entry.owner)]


# -- RQ's own command line


def rq(redis_url: str, *command: str) -> None:
    line = [sys.executable, "-m", "rq.cli", *command, "--url", redis_url]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_rq_empty_loses_nothing(board: Board, redis_url: str) -> None:
    ids = [board.submit() for _ in range(3)]
    running = board.claim(SLOT)
    assert running
    rq(redis_url, "empty", "default.normal")
    assert board.redis.llen(QUEUE) == 0
    assert board.waiting() == ids[1:]
    taken = board.claim(SLOT)
    assert taken and taken.entry.id == ids[1], "also before the sweeper comes"
    assert board.jobs(calls.heal("default.normal")) == 1
    for claimed in (running, taken, board.claim(SLOT)):
        assert claimed
        board.finish(claimed, Outcome(JobStatus.FAILED, FAILURE))
    assert [board.entry(job_id).status for job_id in ids] == [JobStatus.FAILED] * 3


def test_a_foreign_rq_worker_takes_nothing(board: Board, redis_url: str) -> None:
    ids = [board.submit(max_attempts=attempts) for attempts in (1, 3, 1)]
    rq(redis_url, "worker", "--burst", "--serializer", "rq.serializers.JSONSerializer", "default.normal")
    assert board.waiting() == ids
    taken = board.claim(SLOT)
    assert taken and taken.entry.id == ids[0]
    board.jobs(calls.heal("default.normal"))
    for job_id in ids[1:]:
        job = RqJob.fetch(job_id, board.redis, JSONSerializer)
        assert job.get_status() == "queued"
        assert board.redis.ttl(job.key) == -1
        assert board.redis.zscore("rq:failed:default.normal", job_id) is None
    for expected in ids[1:]:
        claimed = board.claim(SLOT)
        assert claimed and claimed.entry.id == expected
        assert claimed.number == 1, "no attempt was charged"


@pytest.mark.parametrize("command", [("info",), ("info", "--raw"), ("requeue", "--all", "--queue", "default.normal")])
def test_looking_with_rq_changes_no_job(board: Board, redis_url: str, command: tuple[str, ...]) -> None:
    board.submit()
    failed = board.submit()
    assert board.claim(SLOT)
    claimed = board.claim("pod-1.1.abc")
    assert claimed and claimed.entry.id == failed
    board.finish(claimed, Outcome(JobStatus.FAILED, FAILURE))
    waiting = board.submit()
    records = {key: value for key, value in board.state().items() if key.startswith("rq:serinette:")}
    rq(redis_url, *command)
    assert {key: value for key, value in board.state().items() if key.startswith("rq:serinette:")} == records
    next_one = board.claim(SLOT)
    assert next_one and next_one.entry.id == waiting
    assert board.claim(SLOT) is None


# -- what stands in a lane and cannot begin


def test_a_newer_schema_at_the_head_stays_there_and_costs_nothing(board: Board) -> None:
    newer, ours = board.submit(), board.submit()
    board.redis.hset(board.keys.job(newer), "schema", 99)
    before = board.redis.dump(board.keys.job(newer))
    claimed = board.claim(SLOT)
    assert claimed and claimed.entry.id == ours
    for _ in range(50):
        assert board.claim(SLOT) is None
    assert board.redis.dump(board.keys.job(newer)) == before, "its record grows by nothing"
    assert board.redis.lrange(QUEUE, 0, -1) == [newer.encode()]
    found = board.jobs(calls.claim("attempt-9", LIVE, "default", [Lane.NORMAL], schema=99))
    assert isinstance(found, Claimed) and found.entry.id == newer


def test_the_last_attempts_are_kept_and_no_others(board: Board) -> None:
    job_id = board.submit()
    for _ in range(25):
        claimed = board.claim(SLOT)
        assert claimed
        board.jobs(calls.release(job_id, claimed.entry.owner or "", None, charged=False))
    assert [attempt.number for attempt in board.entry(job_id).attempts] == list(range(16, 26))


def test_a_claim_looks_at_a_hundred_tombstones_at_most(board: Board) -> None:
    tombstones = [f"canceled-{number}" for number in range(100_000)]
    for first in range(0, len(tombstones), 10_000):
        board.redis.rpush(QUEUE, *tombstones[first : first + 10_000])
    with board.redis.pipeline(transaction=False) as pipe:
        for job_id in tombstones:
            pipe.hset(board.keys.job(job_id), "state", "canceled")
        pipe.execute()
    job_id = board.submit()
    claim = calls.claim("attempt-1", LIVE, "default", [Lane.NORMAL])
    for asked in range(1, 1_002):
        found = board.jobs(claim)
        if asked <= 1_000:
            assert found is True, "ask again"
            assert board.redis.llen(QUEUE) == 100_001 - 100 * asked
    assert isinstance(found, Claimed) and found.entry.id == job_id


def test_unknown_jobs_are_set_aside_and_never_deleted(board: Board) -> None:
    board.redis.rpush(QUEUE, "of-an-old-version")
    job_id = board.submit()
    claimed = board.claim(SLOT)
    assert claimed and claimed.entry.id == job_id
    assert board.redis.lrange(board.keys.unknown_jobs("default.normal"), 0, -1) == [b"of-an-old-version"]
