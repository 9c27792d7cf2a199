"""Traces by OTLP, from an HTTP request through the queue to the stages of its song; Prometheus registries.

Unless `otlp_endpoint` is set, OpenTelemetry is not imported and every call does nothing. Like logging, tracing is set
up once per process, in `main()`. A W3C `traceparent` joins the processes: it comes with a request, is stored in the
job's entry, and is the parent of each attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING

from serinette import __version__, logs
from serinette.errors import ConfigurationError
from serinette.settings import SharedSettings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer
    from prometheus_client import CollectorRegistry

# Values of a span's attributes.
Value = str | int | float

_EXPORT_TIMEOUT_S = 5
_tracer: Tracer | None = None


def configure(settings: SharedSettings, part: str) -> None:
    """Send spans from now on if an endpoint is set. `part` names the process: gateway, slot.

    Raises:
        ConfigurationError: an endpoint is set, but OpenTelemetry is not installed.
    """
    if settings.otlp_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            "otlp_endpoint: traces need `pip install 'serinette[otel]'`; or leave it out"
        ) from error
    url = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
    install(BatchSpanProcessor(OTLPSpanExporter(url, timeout=_EXPORT_TIMEOUT_S)), part, settings.otlp_sample_ratio)


def install(processor: SpanProcessor | None, part: str, sample_ratio: float = 1.0) -> None:
    """Send spans to `processor` from now on; None turns tracing off."""
    global _tracer  # noqa: PLW0603  # one per process, like logging's root
    if processor is None:
        _tracer = None
        return
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # not imported while tracing is off
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415

    resource = Resource.create({"service.name": f"serinette-{part}", "service.version": __version__})
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(sample_ratio), resource=resource)
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("serinette", __version__)


@contextmanager
def span(
    name: str,
    parent: str | None = None,
    began_s: float | None = None,
    attributes: Mapping[str, Value] = MappingProxyType({}),
) -> Iterator[None]:
    """A span of the block, below the current span or below `parent`, a traceparent. `began_s` is in Unix seconds."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(
        name, _below(parent), attributes=_named(attributes), start_time=_nanoseconds(began_s)
    ) as started:
        trace_id = started.get_span_context().trace_id
        with logs.about(trace_id=f"{trace_id:032x}") if trace_id else nullcontext():
            yield


def record(name: str, began_s: float, ended_s: float, parent: str | None = None, **attributes: Value) -> None:
    """Record a span of the past, with its start and end in Unix seconds."""
    if _tracer is not None:
        past = _tracer.start_span(name, _below(parent), attributes=_named(attributes), start_time=_nanoseconds(began_s))
        past.end(_nanoseconds(max(began_s, ended_s)))


def note(**attributes: Value) -> None:
    """Add attributes to the current span."""
    if _tracer is not None:
        from opentelemetry.trace import get_current_span  # noqa: PLC0415

        get_current_span().set_attributes(_named(attributes))


def carried() -> dict[str, str]:
    """Context of the current span for another process: `{"traceparent": ...}`, or empty."""
    if _tracer is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return {name: text for name, text in carrier.items() if name == "traceparent"}


Answered = Callable[[str, int], None]


@contextmanager
def serving(method: str, traceparent: str | None) -> Iterator[Answered]:
    """A span of a request. Call the yielded function with the route's template and the status once they are known."""
    if _tracer is None:
        yield lambda _route, _status: None
        return
    from opentelemetry.trace import SpanKind, StatusCode  # noqa: PLC0415

    with _tracer.start_as_current_span(method, _below(traceparent), SpanKind.SERVER) as started:

        def answered(route: str, status: int) -> None:
            started.update_name(f"{method} {route}")
            started.set_attributes(
                {"http.request.method": method, "http.route": route, "http.response.status_code": status}
            )
            if status >= 500:
                started.set_status(StatusCode.ERROR)

        with logs.about(trace_id=f"{started.get_span_context().trace_id:032x}"):
            yield answered


def _below(traceparent: str | None) -> Context | None:
    """The context of a traceparent; a malformed one starts a new trace. None: the current context."""
    if traceparent is None:
        return None
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"serinette.{name}": value for name, value in attributes.items()}


def _nanoseconds(at_s: float | None) -> int:
    return round((time.time() if at_s is None else at_s) * 1e9)


def new_registry() -> CollectorRegistry:
    """A new Prometheus registry with the CPU seconds, memory and open files of this process."""
    from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector  # noqa: PLC0415  # optional

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def serve_metrics(registry: CollectorRegistry, settings: SharedSettings) -> int | None:
    """Serve the registry from threads of this process if `metrics_port` is set; returns the port, None if not set.

    Raises:
        ConfigurationError: the port cannot be bound.
    """
    if settings.metrics_port is None:
        return None
    from prometheus_client import start_http_server  # noqa: PLC0415  # optional

    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_port: cannot listen on {settings.metrics_host}, port {settings.metrics_port} "
            f"({error.strerror or error}): give each process on one machine its own, or leave it out"
        ) from error
    return int(server.server_port)
