"""Spans of real processes, as an OTLP collector gets them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.gateways import gateway
from tests.pod import pod
from tests.processes import eventually

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Its endpoint, and (service, trace id, span) of all that came."""
    came: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                came.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", came
    finally:
        server.shutdown()
        server.server_close()


def _spans(request: ExportTraceServiceRequest) -> Iterator[tuple[str, str, str]]:
    for resource in request.resource_spans:
        names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield names["service.name"], span.trace_id.hex(), span.name


def test_a_song_s_trace_reaches_the_collector_from_all_processes(tmp_path: Path, redis_url: str) -> None:
    with collector() as (endpoint, came), pod(tmp_path, redis_url, {"otlp_endpoint": endpoint}) as worker:
        process = worker.start()
        store_url = f"file://{tmp_path / 'store'}"
        with gateway(tmp_path, redis_url, store_url, otlp_endpoint=endpoint) as running:
            song = {"prompt": "jazz", "duration_s": 1, "format": "wav"}
            headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
            answer = httpx.post(f"{running.url}/v1/jobs", json=song, headers=headers)
            worker.wait_over(answer.json()["id"])
            assert eventually(lambda: ("serinette-gateway", TRACE, "POST /v1/jobs") in came), came
        process.terminate()  # what was not sent yet is sent on the way out
        process.wait(60)
        sent = {name for service, trace, name in came if service == "serinette-slot" and trace == TRACE}
        assert sent >= {"queue.wait", "claim", "attempt", "stage.denoising", "encode", "upload", "record", "conclude"}


def test_a_collector_that_is_away_costs_no_song(tmp_path: Path, redis_url: str) -> None:
    with pod(tmp_path, redis_url, {"otlp_endpoint": "http://127.0.0.1:9"}) as worker:
        process = worker.start()
        worker.wait_over(worker.submit())
        process.terminate()
        assert process.wait(60) == 0
