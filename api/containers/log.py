"""A container's log on its way to a client: out of Redis while it grows, out of the store when the job has ended."""

from __future__ import annotations

from dataclasses import dataclass, replace

from redis import asyncio as redis_asyncio
from starlette.responses import Response

from api.answering import answering
from api.ranges import names_etag
from api.songs import Asked, Songs
from serinette.errors import NotFound
from serinette.job import Job
from serinette.names import Keys

CONTENT_TYPE = "text/plain; charset=utf-8"
# A Place as text.
PLACE = r"^[0-9]{1,9}-[0-9]{1,12}$"


@dataclass(frozen=True, slots=True)
class Place:
    """How far a log was read: so many bytes of that of one attempt, each of which has a log of its own."""

    attempt: int
    size_bytes: int

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read what `str` wrote, which is the log's ETag."""
        attempt, _, size_bytes = text.partition("-")
        return cls(int(attempt), int(size_bytes))

    def __str__(self) -> str:
        return f"{self.attempt}-{self.size_bytes}"


@dataclass(frozen=True, slots=True)
class KeptLog:
    """A whole log in the store."""

    key: str
    size_bytes: int
    etag: str
    content_type: str = CONTENT_TYPE


@dataclass(frozen=True, slots=True)
class Logs:
    """Containers' logs."""

    redis: redis_asyncio.Redis
    keys: Keys
    songs: Songs

    async def serve(self, job: Job, asked: Asked, after: Place | None) -> Response:
        """The log so far, or what was written behind `after`: 206, or 204 when that is nothing. All of it again where
        another attempt has begun another log.

        Raises:
            NotFound: the job is a song.
            Gone: its file was erased.
        """
        if job.container is None:
            raise NotFound(f"job {job.id} is a song and has no log; follow /v1/jobs/{job.id}/events")
        if job.status.ended and job.run and job.run.log_key:
            return await self._kept(job, job.run.log_key, job.run.log_size_bytes, asked, after)
        with answering():
            start, place, text = await self._read(job.id, after)
        return _live(text, start, place, asked)

    async def _kept(self, job: Job, key: str, size_bytes: int, asked: Asked, after: Place | None) -> Response:
        place = Place(job.attempts[-1].number if job.attempts else 0, size_bytes)
        if after and after.attempt == place.attempt:
            if after.size_bytes >= size_bytes:
                return Response(status_code=204, headers=_headers(place))
            asked = replace(asked, range=f"bytes={after.size_bytes}-", if_range=None, if_none_match=None)
        return await self.songs.serve(KeptLog(key, size_bytes, str(place)), asked, f"{job.id}.log", download=False)

    async def _read(self, job_id: str, after: Place | None) -> tuple[int, Place, bytes]:
        """From which byte on, how far, and the text between."""
        start = after.size_bytes if after else 0
        attempt, text = await self._read_from(job_id, start)
        if after and after.attempt != attempt:
            start = 0
            attempt, text = await self._read_from(job_id, start)
        return start, Place(attempt, start + len(text)), text

    async def _read_from(self, job_id: str, start: int) -> tuple[int, bytes]:
        """Number of the last attempt, and its log from byte `start` on."""
        while True:
            async with self.redis.pipeline(transaction=False) as pipe:
                pipe.hget(self.keys.job(job_id), "attempts")
                # Bytes: a piece may begin and end within a letter.
                pipe.execute_command("GETRANGE", self.keys.log(job_id), start, -1, NEVER_DECODE=True)
                pipe.hget(self.keys.job(job_id), "attempts")
                before, text, attempt = await pipe.execute()
            if before == attempt:  # else another attempt began another log in between
                return int(attempt or 0), text


def _live(text: bytes, start: int, place: Place, asked: Asked) -> Response:
    headers = _headers(place)
    if start and not text:
        return Response(status_code=204, headers=headers)
    if start:
        headers["Content-Range"] = f"bytes {start}-{place.size_bytes - 1}/{place.size_bytes}"
        return Response(text, 206, headers, CONTENT_TYPE)
    if names_etag(asked.if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(text, 200, headers, CONTENT_TYPE)


def _headers(place: Place) -> dict[str, str]:
    return {"ETag": f'"{place}"', "Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
