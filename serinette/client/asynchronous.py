"""AsyncClient: its methods are those of Client too (serinette/client/sync.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from os import PathLike
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, Self, TypeVar, Unpack
from urllib.parse import quote

import httpx

from serinette.client import wire
from serinette.client.answers import EventLines, TenantUsage
from serinette.client.batches import AsyncBatches
from serinette.client.calls import Call, JobFields, audio, job_path, listed, model, nothing, ordered, uploaded
from serinette.client.containers import AsyncContainers
from serinette.client.network import Awaiting, Blocking, incoming
from serinette.client.retries import Retry, RetryBudget, TransientError
from serinette.errors import NotFinished
from serinette.job import ENDED, Job, JobOptions, JobStatus, Upload
from serinette.spec import GenerationSpec
from serinette.views import JobEvent, JobList, ModelView, QueueView, WorkersView

T = TypeVar("T")

_POLL_S = 0.25
# The gateway may be set to hold an answer for less; then it is asked again.
_HOLD_S = 25


class AsyncClient:
    """Talks to one gateway. Safe to share: an AsyncClient between tasks, a Client between threads.

    What may pass is tried again (429, 503, lost connections), `Retry-After` heeded, for as long as `retry` says; no
    call has its effect twice by that. Every method raises the error that the gateway's answer names
    (serinette.errors), and Unavailable when no server answers.
    """

    _kind: ClassVar[type[Awaiting | Blocking]] = Awaiting

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Without `url` and `api_key` those of SERINETTE_URL and SERINETTE_API_KEY count, or this machine's gateway.

        `timeout_s` bounds each wait for the gateway, not a song; `transport` is for tests and odd networks.
        """
        self.url, api_key = wire.address(url, api_key)
        self._retry = retry or Retry()
        self._answered = False
        self._network = self._kind(wire.arguments(self.url, api_key, timeout_s), transport)
        self.batches = AsyncBatches(self, self._network)
        self.containers = AsyncContainers(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._network.close()

    async def submit(
        self,
        song: GenerationSpec | str,
        options: JobOptions | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[JobFields],
    ) -> Job:
        """Queue a song: a spec, or its prompt and further fields, as in `submit("jazz piano", duration_s=15)`.

        A key of its own is drawn for each call, so that what is tried again never makes a second song. Give an
        `idempotency_key` of yours, and the same holds for calls that you repeat yourself.

        Raises:
            InvalidSpec: a field is unknown or out of bounds.
            IdempotencyConflict: the key was used with another spec.
            Limited: a bound is reached, and was for as long as `retry` says.
        """
        given = {"prompt": song} if isinstance(song, str) else song.model_dump(exclude_unset=True)
        return await self.perform(ordered("/v1/jobs", GenerationSpec, given | fields, options, idempotency_key))

    async def get(self, job_id: str) -> Job:
        """One job as it is now.

        Raises:
            NotFound: there is no such job.
        """
        return await self.perform(_job(job_id))

    async def list(
        self,
        *,
        status: JobStatus | None = None,
        label: tuple[str, str] | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> JobList:
        """Jobs, newest first, by status and by a label's name and value; at most 100 a page.

        Of jobs that ended more than ten minutes ago lists know little: `model_fields_set`, of a job and of its `spec`,
        names what they know, the rest are defaults. `get` has all.
        """
        asked = {"limit": limit, "status": status, "cursor": cursor, "label": "=".join(label) if label else None}
        query = {name: value for name, value in asked.items() if value}
        return await self.perform(Call("GET", "/v1/jobs", model(JobList), query))

    async def iterate(
        self, *, status: JobStatus | None = None, label: tuple[str, str] | None = None
    ) -> AsyncIterator[Job]:
        """All jobs of `list`, page by page."""
        cursor: str | None = ""
        while cursor is not None:
            page = await self.list(status=status, label=label, limit=100, cursor=cursor)
            for job in page.jobs:
                yield job
            cursor = page.next_cursor

    async def cancel(self, job_id: str) -> Job:
        """Ask for a job's end: at once when it is queued, within a step when it runs.

        Raises:
            NotFound: there is no such job.
            Conflict: it has succeeded or failed already.
        """
        return await self.perform(Call("POST", f"{job_path(job_id)}/cancel", model(Job)))

    async def erase(self, job_id: str) -> None:
        """Erase an ended job, its songs and every trace of it.

        Raises:
            NotFound: there is no such job.
            NotFinished: it has not ended; cancel it first.
        """
        await self.perform(Call("DELETE", job_path(job_id), nothing, repeatable=False))

    async def events(self, job_id: str, last_event_id: str | None = None) -> AsyncIterator[JobEvent]:
        """A job as it stands (`type` is status, `data` the job), then what happens to it until it ends.

        A stream that breaks is taken up again behind the last event, with a status of its own first. With
        `last_event_id` it goes on behind that event.

        Raises:
            NotFound: there is no such job.
        """
        budget = RetryBudget(self._retry, repeatable=True)
        while True:
            try:
                async with self._opened(_events(job_id, last_event_id)) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    lines = EventLines()
                    async for line in self._network.lines(response):
                        for event in lines.feed(line):
                            budget.renew()
                            last_event_id = event.id
                            yield event
                            if event.type in ENDED:
                                return
                raise wire.events_interrupted(job_id)
            except TransientError as error:
                await self._network.sleep(budget.pause_s(error, answered=self._answered))

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
        answered_at_s = monotonic()
        job: Job | None = None
        while job is None or not job.status.ended:
            pause_s = poll_s
            try:
                job = await self._once(_job(job_id))
                answered_at_s = monotonic()
            except TransientError as error:
                hopeless = not (self._answered or self._retry.unanswered)
                if hopeless or monotonic() - answered_at_s > patience_s:
                    raise error.cause from error
                pause_s = max(poll_s, error.asked_s or 0.0)
            if job is not None:
                yield job
                if job.status.ended:
                    return
            await self._network.sleep(pause_s)

    async def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job once it has ended, well or not: the gateway is asked to answer only then.

        Raises:
            NotFinished: it has not ended within `timeout_s`.
        """
        deadline = None if timeout_s is None else monotonic() + timeout_s
        while True:
            began = monotonic()
            left_s = _HOLD_S if deadline is None else max(0.0, deadline - began)
            job = await self.perform(_job(job_id, min(_HOLD_S, left_s)), deadline)
            if job.status.ended:
                return job
            if deadline is not None and monotonic() >= deadline:
                raise NotFinished(f"job {job_id} is still {job.status} after {timeout_s:g} s")
            await self._network.sleep(
                max(0.0, _POLL_S - (monotonic() - began))
            )  # one that does not hold is not hammered

    async def download(self, job: Job | str, path: str | PathLike[str], index: int = 0) -> int:
        """Write one song of a succeeded job to `path`, whole or not at all; answers its size in bytes.

        Of a Job as `wait` answered it the checksum is compared too; of an id there is none to compare.

        Raises:
            NotFinished: the job has not ended yet.
            Gone: it ended without a song, or its files were erased.
        """
        job_id, result = (job.id, job.result) if isinstance(job, Job) else (job, None)
        known = {song.index: song.sha256 for song in result.artifacts} if result else {}
        return await self.fetch(audio(job_id, index), Path(path), known.get(index))

    async def fetch(self, call: Call[None], path: Path, sha256: str | None) -> int:
        """Write what a call answers to `path`, whole or not at all."""
        budget = RetryBudget(self._retry, repeatable=True)
        while True:
            try:
                with incoming(path) as file:
                    async with self._opened(call) as response:
                        async for piece in self._network.pieces(response):
                            await self._network.run(file.write, piece)
                    return file.finish(sha256)
            except TransientError as error:
                await self._network.sleep(budget.pause_s(error, answered=self._answered))

    async def upload(self, audio: str | PathLike[str] | bytes) -> Upload:
        """Bring a file (or its bytes) to work on; its `id` goes into `source_audio` or `reference_audio`.

        Raises:
            InvalidAudio, TooLarge: it is not kept.
        """
        body = audio if isinstance(audio, bytes) else Path(audio)
        return await self.perform(uploaded("/v1/uploads", Upload, body), body=body)

    async def erase_upload(self, upload_id: str) -> None:
        """Erase an upload. Jobs that still wait to work on it will fail."""
        await self.perform(Call("DELETE", f"/v1/uploads/{quote(upload_id, safe='')}", nothing, repeatable=False))

    async def usage(self, since: date, until: date) -> TenantUsage:
        """What the key's tenant used on those UTC days."""
        query = {"since": since.isoformat(), "until": until.isoformat()}
        return await self.perform(Call("GET", "/v1/usage", model(TenantUsage), query))

    async def queue(self) -> QueueView:
        """What waits in which lane, and the workers."""
        return await self.perform(Call("GET", "/v1/queue", model(QueueView)))

    async def workers(self) -> WorkersView:
        """The workers of each pool, and for pools without one, in words, what holds them."""
        return await self.perform(Call("GET", "/v1/workers", model(WorkersView)))

    async def models(self) -> tuple[ModelView, ...]:
        """The models that workers hold."""
        return await self.perform(Call("GET", "/v1/models", listed(ModelView, "models")))

    async def perform(self, call: Call[T], deadline: float | None = None, body: Path | bytes | None = None) -> T:
        """Send one call, as patiently as `retry` says; `body` is for calls whose body is not JSON."""
        budget = RetryBudget(self._retry, repeatable=call.repeatable, deadline=deadline)
        while True:
            try:
                return await self._once(call, body)
            except TransientError as error:
                await self._network.sleep(budget.pause_s(error, answered=self._answered))

    async def _once(self, call: Call[T], body: Path | bytes | None = None) -> T:
        async with self._opened(call, body) as response:
            raw = await self._network.read(response)
            call.on_headers(response.headers)
        return wire.read(call, raw, self.url)

    @asynccontextmanager
    async def _opened(self, call: Call[Any], body: Path | bytes | None = None) -> AsyncIterator[httpx.Response]:
        with wire.network_errors(self.url):
            content = None if body is None else self._network.content(body)
            request = wire.request(self._network.http, call, content)
            # A presigned redirect leads to the store.
            response = await self._network.send(request, follow_redirects=call.method == "GET")
            try:
                self._answered = True
                if not response.is_success:
                    await self._network.read(response)
                    raise wire.failure(response)
                yield response
            finally:
                await self._network.end(response)


def _job(job_id: str, hold_s: float = 0) -> Call[Job]:
    """One job, answered once it has ended, or after `hold_s`."""
    headers = {"Prefer": f"wait={int(hold_s)}"} if hold_s >= 1 else {}
    return Call("GET", job_path(job_id), model(Job), headers=headers, hold_s=hold_s)


def _events(job_id: str, last_event_id: str | None) -> Call[None]:
    headers = {"Accept": "text/event-stream"} | ({} if last_event_id is None else {"Last-Event-ID": last_event_id})
    return Call("GET", f"{job_path(job_id)}/events", nothing, headers=headers, hold_s=30)  # a comment comes every 15 s
