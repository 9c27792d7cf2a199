"""`client.batches` of an AsyncClient: Batches, method by method."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from serinette.client import batch_calls, calls
from serinette.client.answers import Batch, BatchLine
from serinette.client.batch_calls import BatchOptions
from serinette.client.files import async_chunks, made, size_of
from serinette.client.harvest import Fetched, Harvest, is_there, song_name
from serinette.client.specs import Specs, jsonl
from serinette.errors import NotFinished

if TYPE_CHECKING:
    from serinette.client.asynchronous import AsyncClient


class AsyncBatches:
    """Batches, awaited."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def create(
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
            return await self._client.perform(call, content=lambda: async_chunks(path))

    async def get(self, batch_id: str) -> Batch:
        """One batch as it is now."""
        return await self._client.perform(batch_calls.get(batch_id))

    async def list(self, limit: int = 20) -> tuple[Batch, ...]:
        """The newest batches."""
        return await self._client.perform(batch_calls.newest(limit))

    async def pause(self, batch_id: str) -> Batch:
        """Release no more lines; what was released goes on."""
        return await self._client.perform(batch_calls.move(batch_id, "pause"))

    async def resume(self, batch_id: str) -> Batch:
        """Go on with a paused one."""
        return await self._client.perform(batch_calls.move(batch_id, "resume"))

    async def cancel(self, batch_id: str) -> Batch:
        """Cancel all of its jobs; what was generated is kept."""
        return await self._client.perform(batch_calls.move(batch_id, "cancel"))

    async def retry(self, batch_id: str) -> Batch:
        """Retry the failed and the canceled lines of an ended batch, with the same seeds."""
        return await self._client.perform(batch_calls.move(batch_id, "retry"))

    async def erase(self, batch_id: str) -> None:
        """Erase an ended batch and its files; its jobs and their songs stay."""
        await self._client.perform(batch_calls.erase(batch_id))

    async def wait(self, batch_id: str, *, timeout_s: float | None = None, poll_s: float = 2.0) -> Batch:
        """The batch once it has ended.

        Raises:
            NotFinished: it has not ended within `timeout_s`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not (batch := await self.get(batch_id)).ended:
            if deadline is not None and time.monotonic() >= deadline:
                raise NotFinished(f"batch {batch_id} is still {batch.status} after {timeout_s:g} s")
            await anyio.sleep(poll_s)
        return batch

    async def lines(self, batch_id: str) -> AsyncIterator[BatchLine]:
        """All lines as they are now, in their order, page by page."""
        first = 1
        while page := await self._client.perform(batch_calls.lines(batch_id, first)):
            for line in page:
                yield line
            first = page[-1].line + 1

    async def results(
        self, batch_id: str, directory: str | PathLike[str], *, poll_s: float = 1.0
    ) -> AsyncIterator[Fetched | Batch]:
        """The lines as they end, their songs in `directory`, and between them the batch, the ended one last.

        A song that lies there already is not fetched again: begin again after a crash, and it goes on.
        """
        place = made(directory)
        batch = await self.get(batch_id)
        harvest = Harvest(batch.request_counts.total)
        while True:
            for first in harvest.pages():
                for line in harvest.take(await self._client.perform(batch_calls.lines(batch_id, first))):
                    yield Fetched(line, await self._fetch(line, place))
            yield batch
            if batch.ended:
                return
            await anyio.sleep(poll_s)
            batch = await self.get(batch_id)

    async def download(self, batch_id: str, name: str, path: str | PathLike[str]) -> int:
        """Write a file of an ended batch: `output.jsonl`, `errors.jsonl` or `songs.zip`; its size in bytes.

        Raises:
            NotFinished: it has not ended.
        """
        return await self._client.fetch(batch_calls.file(batch_id, name), Path(path), None)

    async def _fetch(self, line: BatchLine, place: Path) -> tuple[Path, ...]:
        files = []
        for song in line.artifacts:
            path = place / song_name(line, song)
            if not is_there(path, song):
                await self._client.fetch(calls.audio(line.job_id or "", song.index), path, song.sha256)
            files.append(path)
        return tuple(files)
