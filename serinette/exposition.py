"""`/metrics` on a port of its own, where Prometheus finds it and the public does not."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server

from serinette.errors import ConfigurationError
from serinette.settings import SharedSettings


def new_registry() -> CollectorRegistry:
    """A registry of this process: its CPU seconds, memory and open files are in it already."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


def serve(registry: CollectorRegistry, settings: SharedSettings) -> int | None:
    """Serve the registry from threads of this process if `metrics_port` is set; the port, None if not.

    Raises:
        ConfigurationError: the port cannot be had.
    """
    if settings.metrics_port is None:
        return None
    try:
        server, _ = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_port: cannot listen on {settings.metrics_host}, port {settings.metrics_port} "
            f"({error.strerror or error}): give each process on one machine its own, or leave it out"
        ) from error
    return int(server.server_port)
