"""The client that waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import date
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx

from serinette.client import calls, wire
from serinette.client.answers import Event, EventLines, Model, Page, QueueState, TenantUsage, Workers
from serinette.client.batches import Batches
from serinette.client.calls import HOLD_S, Call
from serinette.client.containers import Containers
from serinette.client.fields import JobFields
from serinette.client.files import chunks, id_of, incoming, sha256_of, size_of
from serinette.client.retries import Patience, Retry, Setback
from serinette.client.wire import CHUNK_BYTES, DEFAULT_URL
from serinette.errors import NotFinished
from serinette.job import Job, JobOptions, JobStatus, Upload
from serinette.spec import GenerationSpec

T = TypeVar("T")

_POLL_S = 0.25


class Client:
    """Talks to one gateway. Safe to share between threads.

    What may pass is tried again (429, 503, lost connections), `Retry-After` heeded, for as long as `retry` says; no
    call has its effect twice by that. Every method raises the error that the gateway's answer names
    (serinette.errors), and Unavailable when no server answers.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`timeout_s` bounds each wait for the gateway, not a song; `transport` is for tests and odd networks."""
        self.url = url.rstrip("/")
        self._retry = retry or Retry()
        self._answered = False
        self.batches = Batches(self)
        self.containers = Containers(self)
        self._http = httpx.Client(**wire.arguments(self.url, api_key, timeout_s), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
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
        return self.perform(calls.submit(song, options, idempotency_key, fields))

    def get(self, job_id: str) -> Job:
        """One job as it is now.

        Raises:
            NotFound: there is no such job.
        """
        return self.perform(calls.get(job_id))

    def list(
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
        return self.perform(calls.list_jobs(status, label, limit, cursor))

    def iterate(self, *, status: JobStatus | None = None, label: tuple[str, str] | None = None) -> Iterator[Job]:
        """All jobs of `list`, page by page."""
        page = self.list(status=status, label=label, limit=100)
        yield from page.jobs
        while page.next_cursor:
            page = self.list(status=status, label=label, limit=100, cursor=page.next_cursor)
            yield from page.jobs

    def cancel(self, job_id: str) -> Job:
        """Ask for a job's end: at once when it is queued, within a step when it runs.

        Raises:
            NotFound: there is no such job.
            Conflict: it has succeeded or failed already.
        """
        return self.perform(calls.cancel(job_id))

    def erase(self, job_id: str) -> None:
        """Erase an ended job, its songs and every trace of it.

        Raises:
            NotFound: there is no such job.
            NotFinished: it has not ended; cancel it first.
        """
        self.perform(calls.erase(job_id))

    def events(self, job_id: str, last_event_id: str | None = None) -> Iterator[Event]:
        """A job as it stands (`type` is status, `data` the job), then what happens to it until it ends.

        A stream that breaks is taken up again behind the last event, with a status of its own first. With
        `last_event_id` it goes on behind that event.

        Raises:
            NotFound: there is no such job.
        """
        patience = Patience(self._retry, repeatable=True)
        while True:
            try:
                with self._opened(calls.events(job_id, last_event_id)) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    lines = EventLines()
                    for line in response.iter_lines():
                        for event in lines.feed(line):
                            patience.renew()
                            last_event_id = event.id
                            yield event
                            if event.type in wire.ENDS:
                                return
                raise wire.broken_off(job_id)
            except Setback as setback:
                time.sleep(patience.pause_s(setback, answered=self._answered))

    def watch(self, job_id: str, *, poll_s: float = _POLL_S, patience_s: float | None = None) -> Iterator[Job]:
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
                job = self._once(calls.get(job_id))
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
            time.sleep(pause_s)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job once it has ended, well or not: the gateway is asked to answer only then.

        Raises:
            NotFinished: it has not ended within `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            began = time.monotonic()
            left_s = HOLD_S if deadline is None else max(0.0, deadline - began)
            job = self.perform(calls.get(job_id, min(HOLD_S, left_s)), deadline)
            if job.status.ended:
                return job
            if deadline is not None and time.monotonic() >= deadline:
                raise NotFinished(f"job {job_id} is still {job.status} after {timeout_s:g} s")
            time.sleep(max(0.0, _POLL_S - (time.monotonic() - began)))  # one that does not hold is not hammered

    def download(self, job: Job | str, path: str | PathLike[str], index: int = 0) -> int:
        """Write one song of a succeeded job to `path`, whole or not at all; answers its size in bytes.

        Of a Job as `wait` answered it the checksum is compared too; of an id there is none to compare.

        Raises:
            NotFinished: the job has not ended yet.
            Gone: it ended without a song, or its files were erased.
        """
        return self.fetch(calls.audio(id_of(job), index), Path(path), sha256_of(job, index))

    def fetch(self, call: Call[None], path: Path, sha256: str | None) -> int:
        """Write what a call answers to `path`, whole or not at all."""
        patience = Patience(self._retry, repeatable=True)
        while True:
            try:
                with incoming(path, sha256) as song:
                    with self._opened(call) as response, song.partial.open("wb") as file:
                        for chunk in response.iter_bytes(CHUNK_BYTES):
                            file.write(chunk)
                            song.update(chunk)
                    return song.finish()
            except Setback as setback:
                time.sleep(patience.pause_s(setback, answered=self._answered))

    def upload(self, audio: str | PathLike[str] | bytes) -> Upload:
        """Bring a file (or its bytes) to work on; its `id` goes into `source_audio` or `reference_audio`.

        Raises:
            InvalidAudio, TooLarge: it is not kept.
        """
        body = audio if isinstance(audio, bytes) else Path(audio)
        return self.perform(calls.upload(size_of(body)), content=lambda: chunks(body))

    def erase_upload(self, upload_id: str) -> None:
        """Erase an upload. Jobs that still wait to work on it will fail."""
        self.perform(calls.erase_upload(upload_id))

    def usage(self, since: date, until: date) -> TenantUsage:
        """What the key's tenant used on those UTC days."""
        return self.perform(calls.usage(since, until))

    def queue(self) -> QueueState:
        """What waits in which lane, and the workers."""
        return self.perform(calls.queue())

    def workers(self) -> Workers:
        """The workers of each pool, and for pools without one, in words, what holds them."""
        return self.perform(calls.workers())

    def models(self) -> tuple[Model, ...]:
        """The models that workers hold."""
        return self.perform(calls.models())

    def perform(
        self, call: Call[T], deadline: float | None = None, content: Callable[[], Iterable[bytes]] | None = None
    ) -> T:
        """Send one call, as patiently as `retry` says; `content` is a body that is not JSON."""
        patience = Patience(self._retry, repeatable=call.repeatable, deadline=deadline)
        while True:
            try:
                return self._once(call, content() if content else None)
            except Setback as setback:
                time.sleep(patience.pause_s(setback, answered=self._answered))

    def _once(self, call: Call[T], content: Iterable[bytes] | None = None) -> T:
        with self._opened(call, content) as response:
            raw = response.read()
            call.heed(response.headers)
        return wire.read(call, raw, self.url)

    @contextmanager
    def _opened(self, call: Call[Any], content: Iterable[bytes] | None = None) -> Iterator[httpx.Response]:
        with wire.telling(self.url):
            request = wire.request(self._http, call, content)
            # A presigned redirect leads to the store.
            response = self._http.send(request, stream=True, follow_redirects=call.method == "GET")
            with closing(response):
                self._answered = True
                if not response.is_success:
                    response.read()
                    raise wire.failure(response)
                yield response
