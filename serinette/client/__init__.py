"""Clients of the gateway's own API: Client waits, AsyncClient awaits. docs/python.md shows both at work."""

from __future__ import annotations

from serinette.batch import Batch, BatchLine, BatchOptions
from serinette.client.answers import Event, Model, Page, QueueState, TenantUsage, Workers
from serinette.client.asynchronous import AsyncClient
from serinette.client.batches import Fetched
from serinette.client.retries import Retry
from serinette.client.songs import AsyncSong, Song, generate, generate_async
from serinette.client.sync import Client
from serinette.client.wire import DEFAULT_URL

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "AsyncSong",
    "Batch",
    "BatchLine",
    "BatchOptions",
    "Client",
    "Event",
    "Fetched",
    "Model",
    "Page",
    "QueueState",
    "Retry",
    "Song",
    "TenantUsage",
    "Workers",
    "generate",
    "generate_async",
]
