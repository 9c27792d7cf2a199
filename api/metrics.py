"""`/metrics` of a gateway: its own requests. What is in the queue the controller exposes, once for all gateways."""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager, nullcontext

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.settings import GatewaySettings
from serinette import logs, telemetry
from serinette.webhook import is_loopback

# What is asked for by other methods is told as one: a client may make up any.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# A request that matched no route. Never the path itself: a client may make up any.
_NO_ROUTE = "none"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_JOB_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class HttpMetrics:
    """Requests by route, method and status. A route is the template, so that its values are as many as our routes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Counter(
            "serinette_http_requests",
            "Requests that were answered; WebSockets count as method WEBSOCKET, status 101.",
            ["route", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "serinette_http_request_seconds",
            "From a request's arrival to the beginning of its answer; with `wait`, a song lies in between.",
            ["route", "method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.open = Gauge(
            "serinette_http_requests_open",
            "Requests under way: held ones, event streams and downloads too.",
            registry=registry,
        )

        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """An answer has begun."""
        found = self._series.get((route, method, status))
        if found is None:  # to look one up by its labels takes longer than to count
            found = self._requests.labels(route, method, status), self._seconds.labels(route, method)
            self._series[route, method, status] = found
        found[0].inc()
        found[1].observe(seconds)


class MetricsMiddleware:
    """Counts each request, and has every log line on the way name the job that its path names. Pure ASGI."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, watching its answer."""
        if scope["type"] not in {"http", "websocket"}:
            return await self._app(scope, receive, send)
        began_s = time.perf_counter()
        status = 0

        def answered(status: int) -> None:
            route = route_of(scope)
            self._metrics.answered(route, _method(scope), status, time.perf_counter() - began_s)
            traced(route, status)

        async def watched(message: Message) -> None:
            nonlocal status
            if status == 0 and (told := _status(message)):
                status = told
                answered(status)
            await send(message)

        with self._metrics.open.track_inprogress(), _about_job(scope["path"]), _traced(scope) as traced:
            fate = 499  # the client left before its answer; nginx's word for it
            try:
                return await self._app(scope, receive, watched)
            except Exception:
                fate = 500  # answered by Starlette, further out than any middleware
                raise
            finally:
                if status == 0:
                    answered(fate)


def route_of(scope: Scope) -> str:
    """The template of the route that took the request, e.g. `/v1/jobs/{job_id}`."""
    path: str = getattr(scope.get("route"), "path", "") or _NO_ROUTE
    return path


def _method(scope: Scope) -> str:
    if scope["type"] == "websocket":
        return "WEBSOCKET"
    return scope["method"] if scope["method"] in _METHODS else "other"


def _status(message: Message) -> int:
    match message["type"]:
        case "http.response.start" | "websocket.http.response.start":
            return int(message["status"])
        case "websocket.accept":
            return 101
        case "websocket.close":  # before it was accepted, which servers answer with 403
            return 403
    return 0


def _traced(scope: Scope) -> AbstractContextManager[telemetry.Answered]:
    if scope["path"] in _PROBES:
        return nullcontext(lambda _route, _status: None)
    sent = dict(scope["headers"]).get(b"traceparent")
    return telemetry.serving(_method(scope), sent.decode("latin-1") if sent else None)


def _about_job(path: str) -> AbstractContextManager[None]:
    found = _JOB_ID.search(path)
    return logs.about(job=found[0]) if found else nullcontext()


def expose(app: FastAPI, metrics: HttpMetrics, settings: GatewaySettings) -> None:
    """Answer `/metrics` on the gateway's own port if only this machine reaches it, and there is no port for metrics."""
    if settings.metrics_port is None and is_loopback(settings.host):

        async def tell(request: Request) -> Response:
            encoder, content_type = choose_encoder(request.headers.get("accept", ""))
            return Response(encoder(metrics.registry), headers={"content-type": content_type})

        app.add_route("/metrics", tell, include_in_schema=False)
