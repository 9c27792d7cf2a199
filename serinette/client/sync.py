"""What waits: generated from asynchronous.py by `make client`, so change that one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from os import PathLike
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self, TypeVar, Unpack

import httpx

from serinette.client import batch_calls, calls, container_calls, wire
from serinette.client.answers import Batch, BatchLine, Event, EventLines, Model, Page, QueueState, TenantUsage, Workers
from serinette.client.batch_calls import BatchOptions, Fetched, PendingLines, Specs, is_fetched, jsonl, song_name
from serinette.client.calls import HOLD_S, Call, JobFields
from serinette.client.container_calls import ContainerFields, LogReader, outputs_of, place_of
from serinette.client.files import chunks, created, id_of, incoming, made, sha256_of, size_of
from serinette.client.retries import Retry, RetryBudget, TransientError
from serinette.client.wire import CHUNK_BYTES
from serinette.container import ContainerSpec, Output
from serinette.errors import NotFinished
from serinette.job import Job, JobOptions, JobStatus, Upload, UploadedFile
from serinette.spec import GenerationSpec

T = TypeVar("T")

_POLL_S = 0.25


class Client:
    """Talks to one gateway. Safe to share: an AsyncClient between tasks, a Client between threads.

    What may pass is tried again (429, 503, lost connections), `Retry-After` heeded, for as long as `retry` says; no
    call has its effect twice by that. Every method raises the error that the gateway's answer names
    (serinette.errors), and Unavailable when no server answers.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Without `url` and `api_key` those of SERINETTE_URL and SERINETTE_API_KEY count, or this machine's gateway.

        `timeout_s` bounds each wait for the gateway, not a song; `transport` is for tests and odd networks.
        """
        self.url, api_key = wire.address(url, api_key)
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
        for job in page.jobs:
            yield job
        while page.next_cursor:
            page = self.list(status=status, label=label, limit=100, cursor=page.next_cursor)
            for job in page.jobs:
                yield job

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
        budget = RetryBudget(self._retry, repeatable=True)
        while True:
            try:
                with self._opened(calls.events(job_id, last_event_id)) as response:
                    if response.status_code == httpx.codes.NO_CONTENT:
                        return
                    lines = EventLines()
                    for line in response.iter_lines():
                        for event in lines.feed(line):
                            budget.renew()
                            last_event_id = event.id
                            yield event
                            if event.type in wire.ENDS:
                                return
                raise wire.events_interrupted(job_id)
            except TransientError as error:
                sleep(budget.pause_s(error, answered=self._answered))

    def watch(self, job_id: str, *, poll_s: float = _POLL_S, patience_s: float | None = None) -> Iterator[Job]:
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
                job = self._once(calls.get(job_id))
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
            sleep(pause_s)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job once it has ended, well or not: the gateway is asked to answer only then.

        Raises:
            NotFinished: it has not ended within `timeout_s`.
        """
        deadline = None if timeout_s is None else monotonic() + timeout_s
        while True:
            began = monotonic()
            left_s = HOLD_S if deadline is None else max(0.0, deadline - began)
            job = self.perform(calls.get(job_id, min(HOLD_S, left_s)), deadline)
            if job.status.ended:
                return job
            if deadline is not None and monotonic() >= deadline:
                raise NotFinished(f"job {job_id} is still {job.status} after {timeout_s:g} s")
            sleep(max(0.0, _POLL_S - (monotonic() - began)))  # one that does not hold is not hammered

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
        budget = RetryBudget(self._retry, repeatable=True)
        while True:
            try:
                with incoming(path, sha256) as song:
                    with self._opened(call) as response, created(song.partial) as file:
                        for chunk in response.iter_bytes(CHUNK_BYTES):
                            file.write(chunk)
                            song.update(chunk)
                    return song.finish()
            except TransientError as error:
                sleep(budget.pause_s(error, answered=self._answered))

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
        budget = RetryBudget(self._retry, repeatable=call.repeatable, deadline=deadline)
        while True:
            try:
                return self._once(call, content() if content else None)
            except TransientError as error:
                sleep(budget.pause_s(error, answered=self._answered))

    def _once(self, call: Call[T], content: Iterable[bytes] | None = None) -> T:
        with self._opened(call, content) as response:
            raw = response.read()
            call.on_headers(response.headers)
        return wire.read(call, raw, self.url)

    @contextmanager
    def _opened(self, call: Call[Any], content: Iterable[bytes] | None = None) -> Iterator[httpx.Response]:
        with wire.network_errors(self.url):
            request = wire.request(self._http, call, content)
            # A presigned redirect leads to the store.
            response = self._http.send(request, stream=True, follow_redirects=call.method == "GET")
            try:
                self._answered = True
                if not response.is_success:
                    response.read()
                    raise wire.failure(response)
                yield response
            finally:
                response.close()


class Batches:
    """`client.batches`: many songs under one name; see docs/batches.md for what their statuses mean."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        specs: Specs | PathLike[str],
        options: BatchOptions | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Order many songs: specs, mappings (with `custom_id`, if you like) or prompts; or the path of a JSONL file.

        Raises:
            InvalidBatch: a line is wrong, and nothing of the batch was kept.
        """
        with jsonl(specs) as path:
            call = batch_calls.create(options or BatchOptions(), idempotency_key, size_of(path))
            return self._client.perform(call, content=lambda: chunks(path))

    def get(self, batch_id: str) -> Batch:
        """One batch as it is now."""
        return self._client.perform(batch_calls.get(batch_id))

    def list(self, limit: int = 20) -> tuple[Batch, ...]:
        """The newest batches."""
        return self._client.perform(batch_calls.newest(limit))

    def pause(self, batch_id: str) -> Batch:
        """Release no more lines; what was released goes on."""
        return self._client.perform(batch_calls.move(batch_id, "pause"))

    def resume(self, batch_id: str) -> Batch:
        """Go on with a paused one."""
        return self._client.perform(batch_calls.move(batch_id, "resume"))

    def cancel(self, batch_id: str) -> Batch:
        """Cancel all of its jobs; what was generated is kept."""
        return self._client.perform(batch_calls.move(batch_id, "cancel"))

    def retry(self, batch_id: str) -> Batch:
        """Retry the failed and the canceled lines of an ended batch, with the same seeds."""
        return self._client.perform(batch_calls.move(batch_id, "retry"))

    def erase(self, batch_id: str) -> None:
        """Erase an ended batch and its files; its jobs and their songs stay."""
        self._client.perform(batch_calls.erase(batch_id))

    def wait(self, batch_id: str, *, timeout_s: float | None = None, poll_s: float = 2.0) -> Batch:
        """The batch once it has ended.

        Raises:
            NotFinished: it has not ended within `timeout_s`.
        """
        deadline = None if timeout_s is None else monotonic() + timeout_s
        while not (batch := self.get(batch_id)).ended:
            if deadline is not None and monotonic() >= deadline:
                raise NotFinished(f"batch {batch_id} is still {batch.status} after {timeout_s:g} s")
            sleep(poll_s)
        return batch

    def lines(self, batch_id: str) -> Iterator[BatchLine]:
        """All lines as they are now, in their order, page by page."""
        first = 1
        while page := self._client.perform(batch_calls.lines(batch_id, first)):
            yield from page
            first = page[-1].line + 1

    def results(
        self, batch_id: str, directory: str | PathLike[str], *, poll_s: float = 1.0
    ) -> Iterator[Fetched | Batch]:
        """The lines as they end, their songs in `directory`, and between them the batch, the ended one last.

        A song that lies there already is not fetched again: begin again after a crash, and it goes on.
        """
        place = made(directory)
        batch = self.get(batch_id)
        pending = PendingLines(batch.request_counts.total)
        while True:
            for first in pending.pages():
                for line in pending.take(self._client.perform(batch_calls.lines(batch_id, first))):
                    yield Fetched(line, self._fetch(line, place))
            yield batch
            if batch.ended:
                return
            sleep(poll_s)
            batch = self.get(batch_id)

    def download(self, batch_id: str, name: str, path: str | PathLike[str]) -> int:
        """Write a file of an ended batch: `output.jsonl`, `errors.jsonl` or `songs.zip`; its size in bytes.

        Raises:
            NotFinished: it has not ended.
        """
        return self._client.fetch(batch_calls.file(batch_id, name), Path(path), None)

    def _fetch(self, line: BatchLine, place: Path) -> tuple[Path, ...]:
        files = []
        for song in line.artifacts:
            path = place / song_name(line, song)
            if not is_fetched(path, song):
                self._client.fetch(calls.audio(line.job_id or "", song.index), path, song.sha256)
            files.append(path)
        return tuple(files)


class Containers:
    """`client.containers`: containers of the user's own; see docs/containers.md."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(
        self,
        container: ContainerSpec | str,
        command: Sequence[str] = (),
        options: JobOptions | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[ContainerFields],
    ) -> Job:
        """Queue a container: a spec, or its image and further fields, as in `submit(image, ["train"], gpus=1)`.

        Raises:
            Unsupported: this deployment runs none.
            InvalidSpec: a field is unknown, out of bounds, or more than the operator allows.
            IdempotencyConflict: the key was used with another container.
            Limited: a bound is reached, and was for as long as `retry` says.
        """
        return self._client.perform(container_calls.submit(container, command, options, idempotency_key, fields))

    def upload(self, file: str | PathLike[str] | bytes) -> UploadedFile:
        """Bring a file (or its bytes), whatever it is; its `id` is the `upload` of one of a container's `inputs`.

        Raises:
            Unsupported: this deployment runs no containers.
            TooLarge: it is not kept.
        """
        body = file if isinstance(file, bytes) else Path(file)
        return self._client.perform(container_calls.upload(size_of(body)), content=lambda: chunks(body))

    def log(self, job_id: str) -> str:
        """The log: as far as it is while the container runs, whole when it has ended.

        Raises:
            NotFound: there is no such job, or it is a song.
        """
        return self._client.perform(container_calls.log(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """The lines of the log from its beginning, as they come, until the job has ended. Each attempt has its own.

        Raises:
            NotFound: there is no such job, or it is a song.
        """
        reader = LogReader(job_id)
        for event in self._client.events(job_id):
            if event.type in wire.LOG_EVENTS:
                for line in self._client.perform(reader.call()):
                    yield line
        for line in reader.rest():
            yield line

    def outputs(self, job: Job | str) -> tuple[Output, ...]:
        """What it left below /outputs; nothing until it has ended."""
        return outputs_of(job if isinstance(job, Job) else self._client.get(job))

    def download(self, job: Job | str, directory: str | PathLike[str]) -> tuple[Path, ...]:
        """Write all outputs below a directory, each whole and with its SHA-256 compared; their paths.

        Raises:
            Gone: they were erased.
            SerinetteError: one has a name that leads elsewhere.
        """
        job = job if isinstance(job, Job) else self._client.get(job)
        place = made(directory)
        files = [(output, place_of(place, output)) for output in outputs_of(job)]
        for output, path in files:
            self._client.fetch(container_calls.output(job.id, output.name), path, output.sha256 or None)
        return tuple(path for _, path in files)
