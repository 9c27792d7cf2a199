"""One trace from the request to the record, and nothing at all when traces are off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis import Redis

from api.app import create_app
from api.settings import GatewaySettings
from gpu_worker.slot.held_job import HeldJob
from serinette import telemetry
from serinette.errors import EngineCrashed
from serinette.job import Stage
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.slot_bench import SlotBench

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    telemetry.install(SimpleSpanProcessor(exporter), "test")
    yield exporter
    telemetry.install(None, "test")


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


async def post(redis_url: str, store_url: str, traceparent: bytes | None = None) -> httpx.Response:
    settings = GatewaySettings.model_validate({"redis_url": redis_url, "store_url": store_url})
    transport = httpx.ASGITransport(create_app(settings))
    headers = [] if traceparent is None else [(b"traceparent", traceparent)]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.post("/v1/jobs", json={"prompt": "jazz", "duration_s": 1}, headers=headers)


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def parent_of(span: ReadableSpan) -> str | None:
    return f"{span.parent.span_id:016x}" if span.parent else None


def id_of(span: ReadableSpan) -> str:
    return f"{span.context.span_id:016x}"


async def test_a_song_is_one_trace_from_its_request_to_its_record(
    exporter: InMemorySpanExporter, bench: SlotBench, redis_url: str, file_store_url: str
) -> None:
    answer = await post(redis_url, file_store_url, SENT.encode())
    slot = bench.slot()

    def stages(held: HeldJob) -> None:
        for stage in (Stage.CONDITIONING, Stage.DENOISING, Stage.DECODING):
            held.times.reached(stage)

    bench.engine.meanwhile = stages
    slot.run_one()
    spans = by_name(exporter)
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    parents = {name: parent_of(span) for name, span in spans.items()}
    request, submit, attempt = (id_of(spans[name]) for name in ("POST /v1/jobs", "submit", "attempt"))
    assert parents.pop("POST /v1/jobs") == PARENT
    assert parents.pop("submit") == request
    assert parents.pop("queue.wait") == submit
    assert parents.pop("attempt") == submit
    parts = {
        "claim",
        "stage.conditioning",
        "stage.denoising",
        "stage.decoding",
        "encode",
        "upload",
        "record",
        "conclude",
    }
    assert parents == dict.fromkeys(parts, attempt)
    attributes = dict(spans["attempt"].attributes or {})
    assert attributes["serinette.job"] == answer.json()["id"]
    assert attributes["serinette.outcome"] == "succeeded"
    assert dict(spans["POST /v1/jobs"].attributes or {})["http.response.status_code"] == 202
    assert all(span.end_time >= span.start_time for span in spans.values() if span.end_time and span.start_time)


async def test_each_attempt_is_traced_with_its_end_and_waits_from_when_it_was_put_back(
    exporter: InMemorySpanExporter, bench: SlotBench, redis_url: str, file_store_url: str
) -> None:
    await post(redis_url, file_store_url)
    slot = bench.slot()

    def crash(_: HeldJob) -> None:
        raise EngineCrashed("imagined")

    bench.engine.meanwhile = crash
    slot.run_one()
    bench.engine.meanwhile = lambda _: None
    slot.run_one()
    spans = [span for span in exporter.get_finished_spans() if span.name in {"attempt", "queue.wait"}]
    waits, attempts = ([span for span in spans if span.name == name] for name in ("queue.wait", "attempt"))
    attributes = [dict(span.attributes or {}) for span in attempts]
    assert [each["serinette.attempt"] for each in attributes] == [1, 2]
    assert [each["serinette.outcome"] for each in attributes] == ["retried", "succeeded"]
    assert attributes[0]["serinette.code"] == "engine_crashed"
    assert len({span.context.trace_id for span in spans}) == 1
    assert (waits[1].start_time or 0) >= (attempts[0].start_time or 0)


@pytest.mark.parametrize("sent", ["", "no trace", f"00-{'0' * 32}-{PARENT}-01", "00-" + "z" * 51, "é" * 55])
async def test_a_malformed_traceparent_begins_a_trace_of_its_own(
    exporter: InMemorySpanExporter, redis_url: str, file_store_url: str, sent: str
) -> None:
    answer = await post(redis_url, file_store_url, sent.encode("latin-1"))
    assert answer.status_code == 202
    assert by_name(exporter)["POST /v1/jobs"].parent is None


async def test_probes_are_not_traced(exporter: InMemorySpanExporter, redis_url: str, file_store_url: str) -> None:
    settings = GatewaySettings.model_validate({"redis_url": redis_url, "store_url": file_store_url})
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(settings)), base_url="http://localhost"
    ) as http:
        assert (await http.get("/healthz")).is_success
    assert exporter.get_finished_spans() == ()


async def test_without_an_endpoint_a_job_carries_nothing(bench: SlotBench, redis_url: str, file_store_url: str) -> None:
    answer = await post(redis_url, file_store_url, SENT.encode())
    assert "traceparent" not in bench.rq_job(answer.json()["id"]).meta
    assert telemetry.carried() == {}


@pytest.mark.parametrize("module", ["api.app", "gpu_worker.slot.__main__"])
def test_without_an_endpoint_nothing_that_traces_is_imported(module: str) -> None:
    code = (
        f"import sys, {module}; from serinette import telemetry; from serinette.settings import SharedSettings; "
        "telemetry.configure(SharedSettings(), 'gateway')\n"
        "with telemetry.span('x'): telemetry.record('y', 0, 1); telemetry.note(z=1)\n"
        # redis-py looks for the SDK's metrics by itself.
        "spans = ('opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "print([name for name in sys.modules if name.startswith(spans)])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
