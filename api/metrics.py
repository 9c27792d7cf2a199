"""`/metrics` of a gateway: its own requests. The controller exposes the queue's metrics, once for all gateways."""

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

from api.response_headers import REQUEST_ID
from api.settings import GatewaySettings
from serinette import logs, telemetry
from serinette.webhook import is_loopback

# Other methods are counted as `other`, because clients may send any.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Label of a request that matched no route, never its path, because clients may send any.
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
        if found is None:  # looking up a series by its labels takes longer than counting
            found = self._requests.labels(route, method, status), self._seconds.labels(route, method)
            self._series[route, method, status] = found
        found[0].inc()
        found[1].observe(seconds)


class MetricsMiddleware:
    """Counts each request, and adds the job id of its path to all log lines of the request. Pure ASGI."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and record its response."""
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
            if status == 0 and (found := _status(message)):
                status = found
                answered(status)
            await send(message)

        with self._metrics.open.track_inprogress(), _about(scope), _traced(scope) as traced:
            fate = 499  # the client disconnected before the response; nginx's status
            try:
                return await self._app(scope, receive, watched)
            except Exception:
                fate = 500  # the response is made by Starlette, outside of all middleware
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
        case "websocket.close":  # before it was accepted; servers answer 403
            return 403
    return 0


def _traced(scope: Scope) -> AbstractContextManager[telemetry.Answered]:
    if scope["path"] in _PROBES:
        return nullcontext(lambda _route, _status: None)
    sent = dict(scope["headers"]).get(b"traceparent")
    return telemetry.serving(_method(scope), sent.decode("latin-1") if sent else None)


def _about(scope: Scope) -> AbstractContextManager[None]:
    found = _JOB_ID.search(scope["path"])
    request_id = scope.get(REQUEST_ID, "")
    return logs.about(request=request_id, job=found[0]) if found else logs.about(request=request_id)


def expose(app: FastAPI, metrics: HttpMetrics, settings: GatewaySettings) -> None:
    """Serve `/metrics` on the gateway's own port if it is bound to loopback and `metrics_port` is not set."""
    if settings.metrics_port is None and is_loopback(settings.host):

        async def metrics_page(request: Request) -> Response:
            encoder, content_type = choose_encoder(request.headers.get("accept", ""))
            return Response(encoder(metrics.registry), headers={"content-type": content_type})

        app.add_route("/metrics", metrics_page, include_in_schema=False)
