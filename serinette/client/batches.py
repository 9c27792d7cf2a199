"""Batches: AsyncBatches, whose methods are those of Batches too; specs as JSON Lines; which lines are to be fetched."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from serinette.batch import Batch, BatchLine, BatchOptions, LineStatus
from serinette.client.calls import Call, audio, keyed, listed, model, nothing, sized
from serinette.client.network import Awaiting, Blocking, created
from serinette.errors import NotFinished
from serinette.spec import GenerationSpec

if TYPE_CHECKING:
    from serinette.client.asynchronous import AsyncClient

PAGE_LINES = 250

Spec = GenerationSpec | Mapping[str, Any] | str
Specs = Iterable[Spec]


class AsyncBatches:
    """`client.batches`: many songs under one name; see docs/batches.md for what their statuses mean."""

    def __init__(self, client: AsyncClient, network: Awaiting | Blocking) -> None:
        self._client = client
        self._network = network

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
            query = options.model_dump(exclude_none=True, exclude={"labels"}) if options else {}
            query["label"] = [f"{name}={value}" for name, value in options.labels.items()] if options else []
            headers = sized(path, "application/jsonl") | keyed(idempotency_key)
            # Every line is checked before the answer.
            call = Call("POST", "/v1/batches", model(Batch), query, headers=headers, hold_s=300)
            return await self._client.perform(call, body=path)

    async def get(self, batch_id: str) -> Batch:
        """One batch as it is now."""
        return await self._client.perform(Call("GET", _path(batch_id), model(Batch)))

    async def list(self, limit: int = 20) -> tuple[Batch, ...]:
        """The newest batches."""
        return await self._client.perform(Call("GET", "/v1/batches", listed(Batch, "batches"), {"limit": limit}))

    async def pause(self, batch_id: str) -> Batch:
        """Release no more lines; what was released goes on."""
        return await self._client.perform(Call("POST", _path(batch_id, "pause"), model(Batch)))

    async def resume(self, batch_id: str) -> Batch:
        """Go on with a paused one."""
        return await self._client.perform(Call("POST", _path(batch_id, "resume"), model(Batch)))

    async def cancel(self, batch_id: str) -> Batch:
        """Cancel all of its jobs; what was generated is kept."""
        return await self._client.perform(Call("POST", _path(batch_id, "cancel"), model(Batch)))

    async def retry(self, batch_id: str) -> Batch:
        """Retry the failed and the canceled lines of an ended batch, with the same seeds."""
        # A second one would be another round.
        return await self._client.perform(Call("POST", _path(batch_id, "retry"), model(Batch), repeatable=False))

    async def erase(self, batch_id: str) -> None:
        """Erase an ended batch and its files; its jobs and their songs stay."""
        await self._client.perform(Call("DELETE", _path(batch_id), nothing, repeatable=False))

    async def wait(self, batch_id: str, *, timeout_s: float | None = None, poll_s: float = 2.0) -> Batch:
        """The batch once it has ended.

        Raises:
            NotFinished: it has not ended within `timeout_s`.
        """
        deadline = None if timeout_s is None else monotonic() + timeout_s
        while not (batch := await self.get(batch_id)).ended:
            if deadline is not None and monotonic() >= deadline:
                raise NotFinished(f"batch {batch_id} is still {batch.status} after {timeout_s:g} s")
            await self._network.sleep(poll_s)
        return batch

    async def lines(self, batch_id: str) -> AsyncIterator[BatchLine]:
        """All lines as they are now, in their order, page by page."""
        first = 1
        while page := await self._client.perform(_lines(batch_id, first)):
            for line in page:
                yield line
            first = page[-1].line + 1

    async def results(
        self, batch_id: str, directory: str | PathLike[str], *, poll_s: float = 1.0
    ) -> AsyncIterator[Fetched | Batch]:
        """The lines as they end, their songs in `directory`, and between them the batch, the ended one last.

        A song that lies there already is not fetched again: begin again after a crash, and it goes on.
        """
        place = created(directory)
        batch = await self.get(batch_id)
        pending = PendingLines(batch.request_counts.total)
        while True:
            for first in pending.pages():
                for line in pending.take(await self._client.perform(_lines(batch_id, first))):
                    yield Fetched(line, await self._fetch(line, place))
            yield batch
            if batch.ended:
                return
            await self._network.sleep(poll_s)
            batch = await self.get(batch_id)

    async def download(self, batch_id: str, name: str, path: str | PathLike[str]) -> int:
        """Write a file of an ended batch: `output.jsonl`, `errors.jsonl` or `songs.zip`; its size in bytes.

        Raises:
            NotFinished: it has not ended.
        """
        return await self._client.fetch(Call("GET", _path(batch_id, name), nothing, hold_s=300), Path(path), None)

    async def _fetch(self, line: BatchLine, place: Path) -> tuple[Path, ...]:
        files = []
        for song in line.artifacts:
            path = place / line.file_name(song)
            if not (path.is_file() and path.stat().st_size == song.size_bytes):  # fetched before
                await self._client.fetch(audio(line.job_id or "", song.index), path, song.sha256)
            files.append(path)
        return tuple(files)


def _path(batch_id: str, *rest: str) -> str:
    return "/".join(["/v1/batches", quote(batch_id, safe="") or "-", *rest])


def _lines(batch_id: str, first: int) -> Call[tuple[BatchLine, ...]]:
    query = {"first": first, "limit": PAGE_LINES}
    return Call("GET", _path(batch_id, "lines"), listed(BatchLine, "lines"), query)


@contextmanager
def jsonl(specs: Specs | PathLike[str]) -> Iterator[Path]:
    """A file of one spec a line: the named file, or a new file of the specs, so that it can be sent again."""
    if isinstance(specs, PathLike):
        yield Path(specs)
        return
    with TemporaryDirectory(prefix="serinette-batch-") as directory:
        path = Path(directory) / "specs.jsonl"
        with path.open("w") as file:
            file.writelines(f"{json.dumps(line_of(spec), ensure_ascii=False)}\n" for spec in specs)
        yield path


def line_of(spec: Spec) -> dict[str, Any]:
    """A line as it is sent: a spec, its fields (and `custom_id`), or its prompt alone."""
    if isinstance(spec, GenerationSpec):
        return spec.model_dump(mode="json", exclude_unset=True)
    return {"prompt": spec} if isinstance(spec, str) else dict(spec)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A line that has ended, and its songs where they lie now."""

    line: BatchLine
    files: tuple[Path, ...]


class PendingLines:
    """Lines that have not been seen to end. Lines are released in their order, so what lies far behind can wait."""

    def __init__(self, total: int) -> None:
        firsts = range(1, total + 1, PAGE_LINES)
        self._open = {page: set(range(at, min(at + PAGE_LINES, total + 1))) for page, at in enumerate(firsts)}
        self._released = False

    def pages(self) -> Iterator[int]:
        """First lines of the pages to look at; ends behind one of which nothing was released."""
        for page in list(self._open):
            self._released = False
            yield min(self._open[page])
            if not self._released:
                return

    def take(self, lines: tuple[BatchLine, ...]) -> list[BatchLine]:
        """What a look found: the lines that have ended since the last one."""
        ended = []
        for line in lines:
            self._released = self._released or line.status is not LineStatus.PENDING
            page = (line.line - 1) // PAGE_LINES
            if line.status.ended and line.line in self._open.get(page, ()):
                self._open[page].discard(line.line)
                ended.append(line)
                if not self._open[page]:
                    del self._open[page]
        return ended
