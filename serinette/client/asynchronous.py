"""The client that awaits: Client, method by method, with the same answers and errors."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import anyio
import httpx

from serinette.client import calls, wire
from serinette.client.answers import Event, EventLines, Model, Page, QueueState, TenantUsage, Workers
from serinette.client.async_batches import AsyncBatches
from serinette.client.async_containers import AsyncContainers
from serinette.client.calls import HOLD_S, Call
from serinette.client.fields import JobFields
from serinette.client.files import async_chunks, id_of, incoming, sha256_of, size_of
from serinette.client.retries import Patience, Retry, Setback
from serinette.client.wire import CHUNK_BYTES, DEFAULT_URL
from serinette.errors import NotFinished
from serinette.job import Job, JobOptions, JobStatus, Upload
from serinette.spec import GenerationSpec

T = TypeVar("T")

_POLL_S = 0.25


class AsyncClient:
    """Client for asyncio. Safe to share between tasks."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`timeout_s` bounds each wait for the gateway, not a song; `transport` is for tests and odd networks."""
        self.url = url.rstrip("/")
        self._retry = retry or Retry()
        self._answered = False
        self.batches = AsyncBatches(self)
        self.containers = AsyncContainers(self)
        self._http = httpx.AsyncClient(**wire.arguments(self.url, api_key, timeout_s), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(
        self,
        song: GenerationSpec | str,
        options: JobOptions | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> Job:
        """Queue a song: a spec, or its prompt and further fields; see Client.submit."""
        return await self.perform(calls.submit(song, options, idempotency_key, fields))

    async def get(self, job_id: str) -> Job:
        """One job as it is now.

        Raises:
            NotFound: there is no such job.
        """
        return await self.perform(calls.get(job_id))

    async def list(
        self,
        *,
        status: JobStatus | None = None,
        label: tuple[str, str] | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page:
        """Jobs, newest first, by status and by a label's name and value; at most 100 a page.

        Of jobs that ended more than ten minutes ago lists know little: `model_fields_set`, of a job and of its `spec`,
        names what they know, the rest are defaults. `get` has all.
        """
        return await self.perform(calls.list_jobs(status, label, limit, cursor))

    async def iterate(
        self, *, status: JobStatus | None = None, label: tuple[str, str] | None = None
    ) -> AsyncIterator[Job]:
        """All jobs of `list`, page by page."""
        page = await self.list(status=status, label=label, limit=100)
        for job in page.jobs:
            yield job
        while page.next_cursor:
            page = await self.list(status=status, label=label, limit=100, cursor=page.next_cursor)
            for job in page.jobs:
                yield job

    async def cancel(self, job_id: str) -> Job:
        """Ask for a job's end: at once when it is queued, within a step when it runs.

        Raises:
            NotFound: there is no such job.
            Conflict: it has succeeded or failed already.
        """
        return await self.perform(calls.cancel(job_id))

    async def erase(self, job_id: str) -> None:
        """Erase an ended job, its songs and every trace of it.

        Raises:
            NotFound: there is no such job.
            NotFinished: it has not ended; cancel it first.
        """
        await self.perform(calls.erase(job_id))

    async def events(self, job_id: str, last_event_id: str | None = None) -> AsyncIterator[Event]:
        """A job as it stands (`type` is status, `data` the job), then what happens to it until it ends.

        A stream that breaks is taken up again behind the last event, with a status of its own first. With
        `last_event_id` it goes on behind that event.

        Raises:
            NotFound: there is no such job.
        """
        patience = Patience(self._retry, repeatable=True)
        while True:
            try:
                async with self._opened(calls.events(job_id, last_event_id)) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    lines = EventLines()
                    async for line in response.aiter_lines():
                        for event in lines.feed(line):
                            patience.renew()
                            last_event_id = event.id
                            yield event
                            if event.type in wire.ENDS:
                                return
                raise wire.broken_off(job_id)
            except Setback as setback:
                await anyio.sleep(patience.pause_s(setback, answered=self._answered))

    async def watch(
        self, job_id: str, *, poll_s: float = _POLL_S, patience_s: float | None = None
    ) -> AsyncIterator[Job]:
        """The job again and again until it has ended, the last one included.

        A gateway that is away for less than `patience_s` is waited for; meanwhile the job stays as it was.

        Raises:
            NotFound: there is no such job.
            Unavailable: no answer for `patience_s`.
        """
        patience_s = self._retry.patience_s if patience_s is None else patience_s
        answered_at_s = time.monotonic()
        job: Job | None = None
        while job is None or not job.status.ended:
            pause_s = poll_s
            try:
                job = await self._once(calls.get(job_id))
                answered_at_s = time.monotonic()
            except Setback as setback:
                hopeless = not (self._answered or self._retry.unanswered)
                if hopeless or time.monotonic() - answered_at_s > patience_s:
                    raise setback.error from setback
                pause_s = max(poll_s, setback.asked_s or 0.0)
            if job is not None:
                yield job
                if job.status.ended:
                    return
            await anyio.sleep(pause_s)

    async def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job once it has ended, well or not: the gateway is asked to answer only then.

        Raises:
            NotFinished: it has not ended within `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            began = time.monotonic()
            left_s = HOLD_S if deadline is None else max(0.0, deadline - began)
            job = await self.perform(calls.get(job_id, min(HOLD_S, left_s)), deadline)
            if job.status.ended:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise NotFinished(f"job {job_id} is still {job.status} after {timeout_s:g} s")
            await anyio.sleep(max(0.0, _POLL_S - (time.monotonic() - began)))  # one that does not hold is not hammered

    async def download(self, job: Job | str, path: str | PathLike[str], index: int = 0) -> int:
        """Write one song of a succeeded job to `path`, whole or not at all; answers its size in bytes.

        Of a Job as `wait` answered it the checksum is compared too; of an id there is none to compare.

        Raises:
            NotFinished: the job has not ended yet.
            Gone: it ended without a song, or its files were erased.
        """
        return await self.fetch(calls.audio(id_of(job), index), Path(path), sha256_of(job, index))

    async def fetch(self, call: Call[None], path: Path, sha256: str | None) -> int:
        """Write what a call answers to `path`, whole or not at all."""
        patience = Patience(self._retry, repeatable=True)
        while True:
            try:
                with incoming(path, sha256) as song:
                    async with self._opened(call) as response, await anyio.open_file(song.partial, "wb") as file:
                        async for chunk in response.aiter_bytes(CHUNK_BYTES):
                            await file.write(chunk)
                            song.update(chunk)
                    return song.finish()
            except Setback as setback:
                await anyio.sleep(patience.pause_s(setback, answered=self._answered))

    async def upload(self, audio: str | PathLike[str] | bytes) -> Upload:
        """Bring a file (or its bytes) to work on; its `id` goes into `source_audio` or `reference_audio`.

        Raises:
            InvalidAudio, TooLarge: it is not kept.
        """
        body = audio if isinstance(audio, bytes) else Path(audio)
        return await self.perform(calls.upload(size_of(body)), content=lambda: async_chunks(body))

    async def erase_upload(self, upload_id: str) -> None:
        """Erase an upload. Jobs that still wait to work on it will fail."""
        await self.perform(calls.erase_upload(upload_id))

    async def usage(self, since: date, until: date) -> TenantUsage:
        """What the key's tenant used on those UTC days."""
        return await self.perform(calls.usage(since, until))

    async def queue(self) -> QueueState:
        """What waits in which lane, and the workers."""
        return await self.perform(calls.queue())

    async def workers(self) -> Workers:
        """The workers of each pool, and for pools without one, in words, what holds them."""
        return await self.perform(calls.workers())

    async def models(self) -> tuple[Model, ...]:
        """The models that workers hold."""
        return await self.perform(calls.models())

    async def perform(
        self, call: Call[T], deadline: float | None = None, content: Callable[[], AsyncIterable[bytes]] | None = None
    ) -> T:
        """Send one call, as patiently as `retry` says; `content` is a body that is not JSON."""
        patience = Patience(self._retry, repeatable=call.repeatable, deadline=deadline)
        while True:
            try:
                return await self._once(call, content() if content else None)
            except Setback as setback:
                await anyio.sleep(patience.pause_s(setback, answered=self._answered))

    async def _once(self, call: Call[T], content: AsyncIterable[bytes] | None = None) -> T:
        async with self._opened(call, content) as response:
            raw = await response.aread()
            call.heed(response.headers)
        return wire.read(call, raw, self.url)

    @asynccontextmanager
    async def _opened(
        self, call: Call[Any], content: AsyncIterable[bytes] | None = None
    ) -> AsyncIterator[httpx.Response]:
        with wire.telling(self.url):
            request = wire.request(self._http, call, content)
            # A presigned redirect leads to the store.
            response = await self._http.send(request, stream=True, follow_redirects=call.method == "GET")
            try:
                self._answered = True
                if not response.is_success:
                    await response.aread()
                    raise wire.failure(response)
                yield response
            finally:
                await response.aclose()
