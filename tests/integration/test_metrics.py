"""`/metrics` of real processes: what a song leaves in them, and what every one of them must report."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serinette.job import JobStatus
from serinette.leash import leashed
from tests.gateways import gateway
from tests.pod import Pod, pod
from tests.processes import eventually
from tests.servers import free_ports

PARTS = ("node", "image", "weights", "load", "first_song")  # an engine of sines compiles nothing

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(port: int) -> Series:
    """Every sample of a process by name and labels; empty while it does not answer."""
    with suppress(httpx.HTTPError):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    return {}


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((f"serinette_{name}", frozenset(labels.items())))


@contextmanager
def controller(given: Pod, port: int, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    own = {"metrics_port": port, "interval_s": 0.1, "lease_s": 2, **settings}
    environment = {f"SERINETTE_{name.upper()}": str(value) for name, value in own.items()}
    with (given.directory / "controller.log").open("ab") as log:
        process = subprocess.Popen(
            leashed([sys.executable, "-m", "controller"]),
            env={**given.environment, **environment},
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def worker(tmp_path: Path, redis_url: str) -> Iterator[Pod]:
    with pod(tmp_path, redis_url) as made:
        yield made


def test_a_song_and_its_failures_are_reported_by_worker_and_controller(worker: Pod) -> None:
    of_worker, of_controller = free_ports(2)
    start = json.dumps({"node_s": 30, "image_s": 50})  # as the controller writes it for this pod
    worker.redis.set(worker.settings.keys.pod_start(socket.gethostname()), start)
    worker.start(metrics_port=of_worker, log_format="json")
    worker.wait_stage()
    with controller(worker, of_controller, log_format="json"):
        worker.wait_over(worker.submit("slow 1"), JobStatus.SUCCEEDED)
        first = {"name": "worker_cold_start_part_seconds", "part": "first_song"}
        assert eventually(lambda: (value(scrape(of_worker), **first) or 0) > 0.9)
        worker.wait_over(worker.submit("oom"), JobStatus.FAILED)
        worker.wait_over(worker.submit("crash once a"), JobStatus.SUCCEEDED)
        assert eventually(lambda: value(scrape(of_worker), "worker_engine_steps_total") == 8)
        scraped = scrape(of_worker)
        assert value(scraped, "worker_slots") == 1
        assert value(scraped, "worker_stage", stage="ready") == 1
        assert value(scraped, "worker_child_deaths_total", part="engine") == 1
        assert value(scraped, "worker_engine_audio_seconds_total") == 1  # of the engine that lives
        assert (value(scraped, "worker_cold_start_seconds") or 0) > 0
        part = {name: value(scraped, "worker_cold_start_part_seconds", part=name) for name in PARTS}
        assert (part["node"], part["image"], part["weights"]) == (30, 50, 0.25)
        assert (part["first_song"] or 0) > 0.9, "of the engine that started cold"
        seen = worker.presence()
        assert seen and seen.cold_start.parts() == part, "as GET /v1/workers answers it"
        assert eventually(lambda: value(scrape(of_controller), "queue_depth", pool="default", lane="normal") == 0)
        scraped = scrape(of_controller)
        assert value(scraped, "controller_leading") == 1
        assert value(scraped, "jobs_ended_total", pool="default", outcome="succeeded", code="") == 2
        assert value(scraped, "jobs_ended_total", pool="default", outcome="failed", code="out_of_memory") == 1
        assert value(scraped, "retries_total", pool="default", code="engine_crashed") == 1
        assert value(scraped, "attempts_ended_total", pool="default", outcome="failed", code="engine_crashed") == 1
        assert value(scraped, "wait_seconds_count", pool="default", lane="normal") == 3  # each job's first claim
        assert value(scraped, "run_seconds_count", pool="default") == 2
        assert value(scraped, "cold_start_seconds_count", pool="default") == 1
        for name in PARTS:
            assert value(scraped, "cold_start_part_seconds_count", pool="default", part=name) == 1
        assert value(scraped, "steps_per_second_count", pool="default") == 2
        assert value(scraped, "real_time_factor_count", pool="default") == 2
        assert value(scraped, "stage_seconds_count", pool="default", stage="upload") == 2
        assert value(scraped, "workers", pool="default", stage="ready") == 1
    lines = [json.loads(line) for line in worker.log().splitlines()]
    assert {"worker", "slot", "engine"} >= {line["part"] for line in lines} >= {"worker", "slot"}
    assert any("job" in line for line in lines if line["part"] == "slot")


def test_of_two_controller_replicas_one_reports_the_queue_and_the_other_follows(worker: Pod) -> None:
    ports = free_ports(2)
    worker.submit("waits")

    def ports_with_queue_series() -> list[int]:
        return [port for port in ports if value(scrape(port), "queue_depth", pool="default", lane="normal") == 1]

    with controller(worker, ports[0]) as first:
        assert eventually(lambda: ports_with_queue_series() == ports[:1])
        with controller(worker, ports[1]):
            assert eventually(lambda: value(scrape(ports[1]), "controller_leading") == 0)
            assert ports_with_queue_series() == ports[:1]
            first.kill()
            assert eventually(lambda: ports_with_queue_series() == ports[1:])


def test_a_taken_port_is_a_wrong_setting(worker: Pod) -> None:
    port = free_ports(1)[0]
    with controller(worker, port):
        assert eventually(lambda: scrape(port))
        with controller(worker, port) as second:
            assert second.wait(60) == 2
    assert f"metrics_port: cannot listen on 127.0.0.1, port {port}" in (worker.directory / "controller.log").read_text()


def test_a_gateway_with_a_port_for_metrics_reports_its_requests_there_only(
    tmp_path: Path, redis_url: str, file_store_url: str
) -> None:
    port = free_ports(1)[0]
    with gateway(tmp_path, redis_url, file_store_url, metrics_port=port) as running:
        assert httpx.get(f"{running.url}/metrics").status_code == 404
        httpx.get(f"{running.url}/v1/jobs/00000000-0000-4000-8000-000000000000")
        scraped, route = scrape(port), {"route": "/v1/jobs/{job_id}", "method": "GET"}
        assert value(scraped, "http_requests_total", route="none", method="GET", status="404") == 1
        assert value(scraped, "http_requests_total", **route, status="404") == 1
        assert value(scraped, "http_request_seconds_count", **route) == 1
