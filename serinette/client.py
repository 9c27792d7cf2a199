"""A client of the gateway's own API.

with Client("http://127.0.0.1:8019") as client:
    job = client.submit(GenerationSpec(prompt="jazz piano", duration_s=15))
    job = client.wait(job.id)
    client.download(job, Path("song.mp3"))
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Self

import httpx

from serinette.errors import NotFinished, SerinetteError, Unavailable, of_code
from serinette.hosts import is_loopback
from serinette.job import Job, JobOptions, JobStatus
from serinette.spec import GenerationSpec

DEFAULT_URL = "http://127.0.0.1:8019"

_POLL_S = 0.25
_CHUNK_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job. The first tells its status, the last is succeeded, failed or canceled."""

    id: str
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first; `next_cursor` leads to older ones."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


class Client:
    """Talks to one gateway. Safe to share between threads.

    Every method raises the error that the gateway's answer names (serinette.errors), and Unavailable when nobody
    answers.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`timeout_s` bounds each wait for the gateway, not a song; `transport` is for tests and odd networks."""
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.url = url.rstrip("/")
        # A proxy from the environment is for the world outside, not for this machine.
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout_s,
            transport=transport,
            trust_env=not is_loopback(httpx.URL(self.url).host),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self, spec: GenerationSpec, options: JobOptions | None = None, *, idempotency_key: str | None = None
    ) -> Job:
        """Queue a song. With an `idempotency_key` a repeated call answers the same job.

        Raises:
            InvalidSpec: a field is out of bounds.
            IdempotencyConflict: the key was used with another spec.
        """
        body = spec.model_dump(mode="json", exclude_unset=True)
        if options is not None:
            body |= options.model_dump(mode="json", exclude_unset=True)
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        return self._job(self._http.build_request("POST", "/v1/jobs", json=body, headers=headers))

    def get(self, job_id: str) -> Job:
        """One job as it is now.

        Raises:
            NotFound: there is no such job.
        """
        return self._job(self._http.build_request("GET", f"/v1/jobs/{job_id}"))

    def list(
        self,
        *,
        status: JobStatus | None = None,
        label: tuple[str, str] | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page:
        """Jobs, newest first, by status and by a label's name and value."""
        query = {"limit": limit, "status": status, "cursor": cursor, "label": "=".join(label) if label else None}
        given = {name: value for name, value in query.items() if value}
        answer = self._json(self._http.build_request("GET", "/v1/jobs", params=given))
        return Page(tuple(Job.model_validate(job) for job in answer["jobs"]), answer.get("next_cursor"))

    def cancel(self, job_id: str) -> Job:
        """Ask for a job's end: at once when it is queued, within a step when it runs.

        Raises:
            NotFound: there is no such job.
            Conflict: it has succeeded or failed already.
        """
        return self._job(self._http.build_request("POST", f"/v1/jobs/{job_id}/cancel"))

    def events(self, job_id: str, last_event_id: str | None = None) -> Iterator[Event]:
        """A job as it stands (`type` is status, `data` the job), then what happens to it until it ends.

        With `last_event_id` only what happened after that event.

        Raises:
            NotFound: there is no such job.
            Unavailable: the connection broke; go on with the last event's id.
        """
        headers = {"Accept": "text/event-stream"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        timeout = httpx.Timeout(30, read=60)  # the gateway sends a comment every 15 s
        request = self._http.build_request("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout)
        with self._answer(request) as response:
            yield from _parse_events(response.iter_lines())

    def watch(self, job_id: str, *, poll_s: float = _POLL_S, patience_s: float = 60.0) -> Iterator[Job]:
        """The job again and again until it has ended, the last one included.

        A gateway that is away for less than `patience_s` is waited for; meanwhile the job stays as it was.

        Raises:
            NotFound: there is no such job.
            Unavailable: nobody answered for `patience_s`.
        """
        answered_at_s = time.monotonic()
        job: Job | None = None
        while job is None or not job.status.ended:
            try:
                job = self.get(job_id)
                answered_at_s = time.monotonic()
            except Unavailable:
                if time.monotonic() - answered_at_s > patience_s:
                    raise
            if job is not None:
                yield job
            time.sleep(poll_s)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job once it has ended, well or not.

        Raises:
            NotFinished: it has not ended within `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for job in self.watch(job_id):
            if deadline is not None and time.monotonic() > deadline and not job.status.ended:
                raise NotFinished(f"job {job_id} is still {job.status} after {timeout_s:g} s")
        return job

    def download(self, job_id: str, path: Path, index: int = 0) -> int:
        """Write one song of a succeeded job to `path`, whole or not at all; answers its size in bytes.

        Raises:
            NotFinished: the job has not ended yet.
            Gone: it ended without a song, or its files were erased.
        """
        partial = path.with_name(f".{path.name}.partial")
        request = self._http.build_request("GET", f"/v1/jobs/{job_id}/audio", params={"index": index})
        try:
            with self._answer(request) as response, partial.open("wb") as file:
                for chunk in response.iter_bytes(_CHUNK_BYTES):
                    file.write(chunk)
            partial.replace(path)  # a song cut short is no song
        finally:
            partial.unlink(missing_ok=True)
        return path.stat().st_size

    def usage(self, since: date, until: date) -> dict[str, Any]:
        """What the key's tenant used on those UTC days, as `GET /v1/usage` tells it."""
        query = {"since": since.isoformat(), "until": until.isoformat()}
        return self._json(self._http.build_request("GET", "/v1/usage", params=query))

    def queue(self) -> dict[str, Any]:
        """Depths and workers, as `GET /v1/queue` tells them."""
        return self._json(self._http.build_request("GET", "/v1/queue"))

    def _job(self, request: httpx.Request) -> Job:
        return Job.model_validate(self._json(request))

    def _json(self, request: httpx.Request) -> dict[str, Any]:
        with self._answer(request) as response:
            try:
                answer: dict[str, Any] = json.loads(response.read())
            except ValueError as error:
                raise SerinetteError(
                    f"{request.url} answered something else than JSON: is that a Serinette?"
                ) from error
            return answer

    @contextmanager
    def _answer(self, request: httpx.Request) -> Iterator[httpx.Response]:
        try:
            # A presigned redirect leads to the store.
            with closing(self._http.send(request, stream=True, follow_redirects=True)) as response:
                if not response.is_success:
                    response.read()
                    raise _error(response)
                yield response
        except httpx.TransportError as error:
            raise Unavailable(
                f"no Serinette answers at {self.url} ({_reason(error)}): start one with `serinette up`, or name "
                "another with --server or SERINETTE_URL"
            ) from error


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__


def _error(response: httpx.Response) -> SerinetteError:
    """The error that a problem+json answer names; for any other answer, by its status code."""
    try:
        problem = response.json()
        error = of_code(problem["code"], problem["detail"])
        error.field = problem.get("field")
    except (ValueError, KeyError, TypeError):
        kind = Unavailable if response.status_code in {429, 502, 503, 504} else SerinetteError
        error = kind(f"{response.request.url} answered {response.status_code} {response.reason_phrase}")
    return error


def _parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Events from the data of server-sent events (HTML standard, 9.2.6), which hold all there is to know."""
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield Event(**json.loads("\n".join(data)))
            data = []
