"""Explanations of jobs that have not ended, in tables."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta

import pytest

from api.queue.explanations import Pool, Waiting, eta_s, expected_s, waiting_for
from serinette import brake
from serinette.container import CONTAINERS_POOL
from serinette.job import Job, JobStatus, Progress, Stage, WaitingCode, now
from serinette.names import Lane
from serinette.pools import PoolFacts
from serinette.presence import TROUBLES, Holdup, Presence, WorkerStage
from serinette.spec import GenerationSpec

AT = now()


def worker(stage: WorkerStage = WorkerStage.READY, slots: int = 1, busy: int = 0) -> Presence:
    return Presence(name="w", pool="default", stage=stage, slots=slots, busy_slots=busy, started_at=AT)


def pool(*workers: Presence, pace_s: float | None = 10.0, **waiting: int) -> Pool:
    lanes = {lane: waiting.get(lane.value, 0) for lane in Lane}
    return Pool("default", lanes, workers=workers, pace_s=pace_s)


def job(status: JobStatus = JobStatus.QUEUED, lane: Lane = Lane.NORMAL, **fields: object) -> Job:
    given = {
        "id": "j",
        "tenant": "t",
        "status": status,
        "spec": GenerationSpec(),
        "pool": "default",
        "lane": lane,
        "created_at": AT,
    }
    return Job.model_validate({**given, **fields})


def test_a_code_of_a_newer_server_is_read() -> None:
    assert job(waiting_code="moonrise").waiting_code == "moonrise"
    assert job(waiting_code="room").waiting_code is WaitingCode.ROOM


def words(waiting: Waiting | None) -> str | None:
    """They begin as their code has it: what a program reads and what a person reads is the same."""
    if waiting is None:
        return None
    code, said = waiting
    assert re.match(BEGINNINGS[code], said), (code, said)
    return said


BEGINNINGS = {
    WaitingCode.WORKER: r"a worker: none is up in pool \w+$",
    WaitingCode.FROM_ZERO: "a worker: .*, which scales from zero",
    WaitingCode.BRAKE: "a worker: .*, and no more are started: ",
    WaitingCode.POD: "a worker: none is up in pool [^;]*; ",
    WaitingCode.MODEL: "the model, which is loading",
    WaitingCode.RESTART: "the worker, which starts again: ",
    **{code: re.escape(said) for code, said in TROUBLES.items() if isinstance(code, WaitingCode)},
    WaitingCode.SUSPENDED: "an operator, who has suspended",
    WaitingCode.ENGINE: "the engine, which generates",
    WaitingCode.AHEAD: r"\d+ jobs? ahead",
    WaitingCode.LANES: r"\d+ jobs? in the lanes above",
    WaitingCode.SLOT: "a free worker",
    WaitingCode.TAKEN: "the worker that is taking it",
    WaitingCode.CANCEL: "its worker to stop",
}
HOUR = timedelta(hours=1)
BUSY = worker(busy=1)
LOADING = worker(WorkerStage.LOADING)


@pytest.mark.parametrize(
    ("ahead", "state", "expected"),
    [
        (0, pool(), "a worker: none is up in pool default"),
        (3, pool(worker(WorkerStage.DRAINING)), "a worker: none is up in pool default"),
        (0, pool(LOADING), "the model, which is loading"),
        (2, pool(LOADING), "2 jobs ahead of it in lane normal"),
        (1, pool(BUSY), "1 job ahead of it in lane normal"),
        (0, pool(BUSY, high=4), "4 jobs in the lanes above normal"),
        (0, pool(BUSY, low=4), "a free worker: it is next in its lane"),
        (0, pool(worker()), "the worker that is taking it"),
        (None, pool(BUSY), "the worker that is taking it"),
        (1_000_000, pool(BUSY), "1000000 jobs ahead of it in lane normal"),
        (1, replace(pool(BUSY), holdup=Holdup(words="x")), "1 job ahead of it in lane normal; no more workers yet: x"),
    ],
)
def test_queued_waits_for(ahead: int | None, state: Pool, expected: str) -> None:
    assert words(waiting_for(job(), ahead, state)) == expected


NONE = "a worker: none is up in pool default"
ZERO, WARM = PoolFacts(name="default"), PoolFacts(name="default", min_workers=1)
FULL = Holdup(pods=1, words="no node has a free nvidia.com/gpu: all 4 are taken")
PAUSED = Holdup(pods=1, words="an operator has paused its scaling")
RELOADING = LOADING.model_copy(
    update={
        "loading_since": AT + timedelta(seconds=10),
        "started_at": AT - HOUR,
        "fetched_bytes": 1_200_000_000,
        "checkpoint_bytes": 11_000_000_000,
    }
)


def troubled(trouble: str, stage: WorkerStage = WorkerStage.LOADING, message: str = "it ended") -> Presence:
    return Presence.model_validate({**worker(stage).model_dump(), "trouble": trouble, "message": message})


FAILING = troubled("restart", message="the engine ended with status 1; see its log")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (replace(pool(), facts=ZERO), f"{NONE}, which scales from zero"),
        (
            replace(pool(), facts=ZERO, cold_start_s=94.6),
            f"{NONE}, which scales from zero; from start to model it takes about 95 s",
        ),
        (replace(pool(), facts=WARM), NONE),
        (replace(pool(), facts=ZERO, holdup=Holdup()), f"{NONE}, which scales from zero"),
        (replace(pool(), facts=ZERO, holdup=Holdup(pods=1)), NONE),  # it is there, and reports nothing yet
        (replace(pool(), facts=ZERO, holdup=FULL), f"{NONE}; no node has a free nvidia.com/gpu: all 4 are taken"),
        (
            replace(pool(), facts=ZERO, holdup=FULL, brake=("load: a", "store: b")),
            f"{NONE}, and no more are started: a; b",
        ),
        (
            replace(pool(BUSY), brake=("load: a",), holdup=FULL),
            "a free worker: it is next in its lane; no more workers are started: a",
        ),
        (
            replace(pool(BUSY), holdup=PAUSED),
            "a free worker: it is next in its lane; no more workers yet: an operator has paused its scaling",
        ),
        (
            replace(pool(BUSY, high=2), holdup=PAUSED),
            "2 jobs in the lanes above normal; no more workers yet: an operator has paused its scaling",
        ),
        (replace(pool(worker()), holdup=PAUSED), "the worker that is taking it"),
        (replace(pool(LOADING), cold_start_s=40), "the model, which is loading: 50 % of the usual 40 s have passed"),
        (
            replace(pool(LOADING), cold_start_s=10),
            "the model, which is loading: for 20 s so far, where about 10 s are usual",
        ),
        (
            replace(pool(RELOADING), cold_start_s=40),
            "the model, which is loading (1,200 of 11,000 MB have come): 25 % of the usual 40 s have passed",
        ),
        (
            replace(pool(FAILING), cold_start_s=40),
            "the worker, which starts again: the engine ended with status 1; see its log",
        ),
    ],
)
def test_words_for_a_pool_without_a_ready_worker(state: Pool, expected: str) -> None:
    assert words(waiting_for(job(), 0, state, AT + timedelta(seconds=20))) == expected


DISK, STORE = TROUBLES[WaitingCode.DISK], TROUBLES[WaitingCode.STORE]
ENDED = troubled("disk", WorkerStage.DRAINING).model_copy(update={"slots": 0})
FULL_SPOOL = troubled("store", WorkerStage.READY)
SUSPENDED = f"{brake.Cause.SUSPENDED}: an operator ran it"


@pytest.mark.parametrize("ahead", [0, 7])
@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        *((pool(troubled(code)), code, TROUBLES[code]) for code in TROUBLES if isinstance(code, WaitingCode)),
        (pool(FAILING), "restart", "the worker, which starts again: the engine ended with status 1; see its log"),
        (pool(troubled("moonrise")), "restart", "the worker, which starts again: it ended"),  # of a newer worker
        (pool(ENDED), "disk", DISK),
        (replace(pool(ENDED), holdup=FULL, brake=("load: a",)), "disk", DISK),
        (pool(ENDED, worker(WorkerStage.DRAINING)), "disk", DISK),
        (pool(troubled("restart", WorkerStage.DRAINING)), "worker", None),  # it does not start again
        (pool(FULL_SPOOL), "store", STORE),
        (pool(FULL_SPOOL, troubled("disk")), "store", STORE),
        (replace(pool(), queue_full=True), "queue", TROUBLES[WaitingCode.QUEUE]),
        (replace(pool(worker()), brake=("store: a", SUSPENDED)), "suspended", None),
        (replace(pool(), brake=(SUSPENDED,)), "suspended", None),
        (replace(pool(), name=CONTAINERS_POOL, brake=(SUSPENDED,)), "suspended", None),
    ],
)
def test_a_pool_that_takes_no_jobs_says_why_whatever_a_jobs_place(
    ahead: int, state: Pool, code: str, expected: str | None
) -> None:
    found = waiting_for(job(), ahead, state, AT)
    assert found
    assert (found[0], words(found)) == (code, expected or found[1])


@pytest.mark.parametrize("state", [pool(ENDED, LOADING), pool(LOADING, FAILING), pool(FULL_SPOOL, worker())])
def test_a_worker_in_trouble_hides_none_that_is_not(state: Pool) -> None:
    found = waiting_for(job(), 0, state, AT)
    assert found
    assert found[0] in {WaitingCode.MODEL, WaitingCode.TAKEN}


@pytest.mark.parametrize(
    ("stage", "cancel", "state", "expected"),
    [
        (Stage.DENOISING, False, pool(BUSY), None),
        (Stage.DENOISING, True, pool(BUSY), "its worker to stop, which takes up to one step"),
        (Stage.WAITING_FOR_ENGINE, False, pool(BUSY), "the engine, which generates for another job"),
        (Stage.WAITING_FOR_ENGINE, False, pool(LOADING), "the model, which is loading"),
    ],
)
def test_running_waits_for(stage: Stage, cancel: bool, state: Pool, expected: str | None) -> None:
    running = job(JobStatus.RUNNING, progress=Progress(stage=stage, at=AT), cancel_requested=cancel)
    assert words(waiting_for(running, None, state)) == expected


def test_ended_waits_for_nothing() -> None:
    assert waiting_for(job(JobStatus.SUCCEEDED), None, pool()) is None


@pytest.mark.parametrize(
    ("lane", "ahead", "state", "expected"),
    [
        (Lane.NORMAL, 0, pool(worker()), 10.0),
        (Lane.NORMAL, 0, pool(BUSY), 15.0),
        (Lane.NORMAL, 3, pool(worker(slots=2)), 20.0),
        (Lane.NORMAL, 0, pool(worker(slots=2), high=2), 20.0),
        (Lane.HIGH, 0, pool(worker(), normal=50), 10.0),
        (Lane.NORMAL, 0, pool(), None),
        (Lane.NORMAL, 0, pool(LOADING), None),
        (Lane.NORMAL, 0, pool(worker(), pace_s=None), None),
    ],
)
def test_eta_of_queued(lane: Lane, ahead: int, state: Pool, expected: float | None) -> None:
    assert eta_s(job(lane=lane), ahead, state, AT) == expected
    assert expected_s(lane, ahead, state) == expected


@pytest.mark.parametrize(
    ("elapsed_s", "progress", "pace_s", "expected"),
    [
        (4, None, 10.0, 6.0),
        (40, None, 10.0, None),
        (4, None, None, None),
        (9, Progress(stage=Stage.DENOISING, step=4, steps=8, at=AT), None, 11.0),
        (1, Progress(stage=Stage.FETCHING, at=AT), 10.0, 9.0),
        (29, Progress(stage=Stage.DENOISING, step=4, steps=8, engine_s=9, at=AT), 10.0, 11.0),
        (31, Progress(stage=Stage.DENOISING, step=4, steps=8, engine_s=9, at=AT - timedelta(seconds=9)), 10.0, 2.0),
        (50, Progress(stage=Stage.DENOISING, step=4, steps=8, engine_s=9, at=AT - timedelta(seconds=28)), 10.0, None),
    ],
)
def test_eta_of_running(elapsed_s: float, progress: Progress | None, pace_s: float | None, expected: float) -> None:
    running = job(JobStatus.RUNNING, started_at=AT - timedelta(seconds=elapsed_s), progress=progress)
    assert eta_s(running, None, pool(BUSY, pace_s=pace_s), AT) == expected
