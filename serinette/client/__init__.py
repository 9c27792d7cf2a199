"""Clients of the gateway's own API: Client waits, AsyncClient awaits. docs/python.md shows both at work."""

from __future__ import annotations

from serinette.batch import Batch, BatchLine, BatchOptions
from serinette.client.answers import TenantUsage
from serinette.client.asynchronous import AsyncClient
from serinette.client.batches import Fetched
from serinette.client.retries import Retry
from serinette.client.songs import AsyncSong, Song, generate, generate_async
from serinette.client.sync import Client
from serinette.client.wire import DEFAULT_URL
from serinette.views import JobEvent, JobList, ModelView, QueueView, WorkersView

__all__ = [
    "DEFAULT_URL",
    "AsyncClient",
    "AsyncSong",
    "Batch",
    "BatchLine",
    "BatchOptions",
    "Client",
    "Fetched",
    "JobEvent",
    "JobList",
    "ModelView",
    "QueueView",
    "Retry",
    "Song",
    "TenantUsage",
    "WorkersView",
    "generate",
    "generate_async",
]
