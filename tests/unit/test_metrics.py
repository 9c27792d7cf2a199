"""What is counted, by what labels, and the page that documents it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from starlette.websockets import WebSocket

from api.app import create_app
from api.metrics import HttpMetrics
from api.settings import GatewaySettings
from controller.metrics import ControllerMetrics
from gpu_worker.engine.serving.counters import WorkCounters
from gpu_worker.metrics import Pod, WorkerMetrics
from gpu_worker.slot.stage_timing import StageTimes
from gpu_worker.wire import Vitals
from serinette import counters
from serinette.counters import MEASURES, Counters
from serinette.job import JobError, JobStatus, Stage, now
from serinette.jobs import Outcome, calls
from serinette.names import Keys, Lane
from serinette.presence import Presence, WorkerStage
from tests.jobs import Board

PAGE = Path(__file__).parents[2] / "docs/observability.md"
FILES = Path(__file__).parents[2] / "charts/serinette/files"
PRESENCE = Presence(name="w", pool="default", stage=WorkerStage.READY, slots=2, busy_slots=1, started_at=now())

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series_of(registry: CollectorRegistry) -> Series:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(it.name, frozenset(it.labels.items())): it.value for family in families for it in family.samples}


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((f"serinette_{name}", frozenset(labels.items())))


# -- counted in Redis


def counted(redis: Redis, keys: Keys, counter: counters.Measure) -> dict[tuple[str, ...], float]:
    return dict(Counters.parse(redis.hgetall(keys.counters)).counts(counter))


LOST = JobError(code="worker_lost", message="gone", retryable=True)


def test_an_end_is_counted_once_however_often_it_is_reported(redis: Redis, keys: Keys) -> None:
    board = Board(redis, keys)
    job_id = board.submit(pool="big")
    for charged in (True, True, False):
        claimed = board.claim(pool="big")
        assert claimed
        release = calls.release(job_id, claimed.entry.owner or "", LOST if charged else None, charged=charged)
        board.jobs(release)
        board.jobs(release)
    claimed = board.claim(pool="big")
    assert claimed
    board.jobs(calls.finish(job_id, "another", Outcome(JobStatus.FAILED, LOST), recorded=True))
    for outcome in (Outcome(JobStatus.FAILED, LOST), Outcome(JobStatus.SUCCEEDED)):
        board.finish(claimed, outcome)
    assert counted(redis, keys, counters.JOBS_ENDED) == {("big", "failed", "worker_lost"): 1}
    assert counted(redis, keys, counters.RETRIES) == {("big", "worker_lost"): 2}
    assert counted(redis, keys, counters.ATTEMPTS_ENDED) == {
        ("big", "failed", "worker_lost"): 2,
        ("big", "returned", ""): 1,
        ("big", "superseded", ""): 1,
    }


def test_the_queue_is_reported_by_its_lanes(redis: Redis, keys: Keys) -> None:
    board, registry = Board(redis, keys), CollectorRegistry()
    ControllerMetrics(registry, redis, keys, lambda: True)
    first, second = board.submit(), board.submit()
    board.submit(lane=Lane.LOW)
    canceled = board.submit()
    board.redis.zadd(keys.live, {first: redis.time()[0] - 100, second: redis.time()[0] - 50})
    board.cancel(canceled)
    claimed = board.claim()
    assert claimed and claimed.entry.id == first
    series = series_of(registry)
    assert value(series, "queue_depth", pool="default", lane="normal") == 1
    assert value(series, "queue_depth", pool="default", lane="low") == 1
    assert value(series, "queue_depth", pool="default", lane="high") == 0
    assert value(series, "jobs_running", pool="default", lane="normal") == 1
    assert value(series, "jobs_unfinished") == 3
    assert 50 <= (value(series, "queue_oldest_seconds", pool="default", lane="normal") or 0) < 60
    assert value(series, "workers_busy", pool="default") == 1
    board.jobs(calls.release(first, claimed.entry.owner or "", None, charged=False))
    assert 100 <= (value(series_of(registry), "queue_oldest_seconds", pool="default", lane="normal") or 0) < 110


def test_a_replica_that_does_not_lead_reports_of_itself_alone(redis: Redis, keys: Keys) -> None:
    registry = CollectorRegistry()
    metrics = ControllerMetrics(registry, redis, keys, lambda: False)
    Board(redis, keys).submit()
    metrics.reconciled("retry", 3)
    series = series_of(registry)
    assert {name for name, _ in series if "queue" in name} == set()
    assert value(series, "controller_reconciled_jobs_total", action="retry") == 3
    assert value(series, "controller_reconciled_jobs_total", action="leave") == 0, "there before the first"


def test_a_value_falls_into_the_first_bucket_that_holds_it(redis: Redis, keys: Keys) -> None:
    for seconds in (0.1, 0.11, 7200, 7201):
        counters.observe(redis, keys, counters.RUN, seconds, "default")
    redis.hset(keys.counters, "run_seconds|default|0.007", 5)  # another version's bucket
    ((_, numbers, summed),) = Counters.parse(redis.hgetall(keys.counters)).distributions(counters.RUN)
    by_bound = dict(zip((*counters.RUN.bounds, None), numbers, strict=True))
    assert {bound: count for bound, count in by_bound.items() if count} == {0.1: 1, 0.5: 1, 7200: 1, None: 1}
    assert summed == pytest.approx(14401.21)


def test_the_wrong_labels_are_refused(redis: Redis, keys: Keys) -> None:
    with pytest.raises(ValueError, match="wait_seconds is counted by"):
        counters.observe(redis, keys, counters.WAIT, 1.0, "default")


def test_what_was_counted_is_reported_cumulatively(redis: Redis, keys: Keys) -> None:
    registry = CollectorRegistry()
    ControllerMetrics(registry, redis, keys, lambda: True)
    for rate in (0.3, 3, 1e6):
        counters.observe(redis, keys, counters.STEP_RATE, rate, "default")
    series = series_of(registry)
    assert value(series, "steps_per_second_bucket", pool="default", le="0.5") == 1
    assert value(series, "steps_per_second_bucket", pool="default", le="5.0") == 2
    assert value(series, "steps_per_second_bucket", pool="default", le="+Inf") == 3
    assert value(series, "steps_per_second_count", pool="default") == 3


def test_a_scrape_while_redis_is_away_reports_the_replica_alone() -> None:
    registry = CollectorRegistry()
    away = Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    ControllerMetrics(registry, away, Keys(), lambda: True)
    series = series_of(registry)
    assert {name for name, _ in series if "queue" in name} == set()
    assert value(series, "controller_leading") == 1


# -- requests


@pytest.fixture
def app(redis_url: str, file_store_url: str) -> FastAPI:
    made = create_app(GatewaySettings.model_validate({"redis_url": redis_url, "store_url": file_store_url}))

    @made.get("/breaks")
    async def breaks() -> None:
        raise ZeroDivisionError

    @made.websocket("/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    made.router.routes.insert(0, made.router.routes.pop())  # before the gateway's own answer to unknown sockets
    return made


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://localhost"
    )


async def test_labels_are_of_our_own_making_whatever_a_client_sends(app: FastAPI) -> None:
    async with client(app) as http:
        for number in range(30):
            await http.get(f"/v1/jobs/{number}")
            await http.get(f"/nowhere/{number}")
            await http.request(f"METHOD{number}", "/v1/queue")
            await http.post("/v1/jobs", content=b" " * 2_000_000)
        await http.get("/breaks")
    series = series_of(app.state.metrics.registry)
    requests = {labels: count for (name, labels), count in series.items() if name == "serinette_http_requests_total"}
    assert sum(requests.values()) == 121
    assert len(requests) == 5, requests
    assert value(series, "http_requests_total", route="/breaks", method="GET", status="500") == 1
    assert value(series, "http_requests_total", route="none", method="POST", status="413") == 30
    assert value(series, "http_requests_open") == 0


async def test_a_websocket_is_counted_when_it_is_accepted(app: FastAPI) -> None:
    scope = {
        "type": "websocket",
        "path": "/live",
        "headers": [(b"host", b"localhost")],
        "query_string": b"",
        "subprotocols": [],
    }
    sent = []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    await app(scope, receive, send)  # type: ignore[arg-type]  # a scope is any mapping
    assert sent[0] == "websocket.accept"
    series = series_of(app.state.metrics.registry)
    assert value(series, "http_requests_total", route="/live", method="WEBSOCKET", status="101") == 1


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({}, 200),
        ({"host": "::1"}, 200),
        ({"host": "0.0.0.0", "allow_anyone": True}, 404),
        ({"metrics_port": 0}, 404),
    ],
)
async def test_metrics_are_on_the_public_port_only_where_it_is_not_public(
    redis_url: str, file_store_url: str, settings: dict[str, object], status: int
) -> None:
    shared = {"redis_url": redis_url, "store_url": file_store_url}
    async with client(create_app(GatewaySettings.model_validate({**shared, **settings}))) as http:
        assert (await http.get("/metrics")).status_code == status


# -- worker


def test_a_worker_reports_what_its_engine_and_gpu_report() -> None:
    metrics = WorkerMetrics(PRESENCE)
    registry = CollectorRegistry()
    registry.register(metrics)
    assert value(series_of(registry), "worker_engine_steps_total") is None
    vitals = Vitals(busy_s=2, audio_s=30, steps=8, gpu_memory_used_bytes=5, gpu_memory_total_bytes=10)
    metrics.pod = Pod(PRESENCE, vitals, cold_start_s=12)
    series = series_of(registry)
    assert value(series, "worker_engine_audio_seconds_total") == 30
    assert value(series, "worker_gpu_memory_used_bytes") == 5
    assert value(series, "worker_gpu_utilization_ratio") is None  # a GPU that does not say
    assert value(series, "worker_cold_start_seconds") == 12
    assert [value(series, "worker_stage", stage=stage) for stage in ("ready", "draining")] == [1, 0]


def test_work_counts_each_step_of_each_song_once() -> None:
    work = WorkCounters()
    with work.generating():
        work.reached(Stage.CONDITIONING, None, 2)
        for step in (1, 2, 2, 3):  # series_of again as a sign of life
            work.reached(Stage.DENOISING, step, 2)
        assert work.vitals("cpu").busy_s > 0
    work.generated(15.0)
    done = work.vitals("cpu, 2 threads")
    assert (done.steps, done.audio_s, done.gpu_memory_total_bytes) == (6, 15.0, None)
    assert work.vitals("").busy_s == done.busy_s  # nothing is generated any more


def test_an_engine_that_waits_for_a_slot_to_take_its_song_is_not_busy() -> None:
    work = WorkCounters()
    with work.generating(), work.handing_over():
        before = work.vitals("").busy_s
        time.sleep(0.05)
        assert work.vitals("").busy_s == before < 0.05
    assert work.vitals("").busy_s < 0.05


@pytest.mark.gpu
def test_a_gpu_reports_its_memory_to_a_process_that_uses_it() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    held = torch.zeros(64 * 1024 * 1024, dtype=torch.uint8, device="cuda")
    vitals = WorkCounters().vitals(f"cuda:0, {torch.cuda.get_device_name(0)}")
    assert held.numel() <= (vitals.gpu_memory_used_bytes or 0) < (vitals.gpu_memory_total_bytes or 0)
    assert vitals.gpu_utilization is None or 0 <= vitals.gpu_utilization <= 1


def test_a_step_rate_needs_two_steps() -> None:
    times = StageTimes()
    times.reached(Stage.DENOISING, 1, at_s=10)
    assert times.steps_per_s is None
    times.reached(Stage.DENOISING, 9, at_s=12)
    assert times.steps_per_s == 4


def test_stages_follow_each_other_without_a_gap() -> None:
    times = StageTimes()
    before_s = time.time()
    for stage in (Stage.CONDITIONING, Stage.CONDITIONING, Stage.DENOISING, Stage.DECODING):
        times.reached(stage)
    found = list(times.intervals())
    assert [it.stage for it in found] == [Stage.CONDITIONING, Stage.DENOISING, Stage.DECODING]
    assert [it.ended_s for it in found[:-1]] == [it.began_s for it in found[1:]]
    assert before_s <= found[0].began_s <= found[-1].ended_s <= time.time()


# -- the page


def families(redis: Redis, keys: Keys) -> Iterator[Metric]:
    """All metrics that the three kinds of process may report, each once."""
    gateway, controller = CollectorRegistry(), CollectorRegistry()
    HttpMetrics(gateway)
    ControllerMetrics(controller, redis, keys, lambda: True)
    yield from gateway.collect()
    yield from WorkerMetrics(PRESENCE).describe()
    yield from controller.collect()


def exposed(found: Iterable[Metric]) -> dict[str, str]:
    return {f"{it.name}_total" if it.type == "counter" else it.name: it.type for it in found}


def test_the_page_lists_every_metric_with_its_type_and_labels(redis: Redis, keys: Keys) -> None:
    rows = re.findall(r"^\| `(serinette_\w+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    assert {name: kind for name, kind, _ in rows} == exposed(families(redis, keys))
    labels = {name: set(re.findall(r"`(\w+)`", cell)) for name, _, cell in rows}
    for measure in MEASURES:
        suffix = "" if measure.bounds else "_total"
        assert labels[f"serinette_{measure.name}{suffix}"] == set(measure.labels)


@pytest.mark.parametrize("name", ["alerts.yaml", "dashboard.json"])
def test_every_metric_that_is_asked_for_exists(redis: Redis, keys: Keys, name: str) -> None:
    asked = set(re.findall(r"\bserinette_\w+", (FILES / name).read_text()))
    known = exposed(families(redis, keys))
    histograms = {f"{name}{part}" for name, kind in known.items() if kind == "histogram" for part in _PARTS}
    assert asked
    assert asked <= known.keys() | histograms


_PARTS = ("_bucket", "_sum", "_count")
