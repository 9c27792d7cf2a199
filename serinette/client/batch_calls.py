"""Batches: what is asked of the gateway, specs as JSON Lines, and which lines are still to be fetched. No network."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, urlencode

from serinette.client.answers import Batch, BatchLine, LineSong
from serinette.client.calls import Call, model, nothing
from serinette.spec import GenerationSpec

PAGE_LINES = 250
JSONL = "application/jsonl"

Spec = GenerationSpec | Mapping[str, Any] | str
Specs = Iterable[Spec]

_NOT_OF_A_FILE_NAME = re.compile(r"[^\w.-]")


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """Of the batch and not of its songs."""

    name: str | None = None
    labels: Mapping[str, str] | None = None
    timeout_s: int | None = None  # of each song
    webhook: str | None = None


def create(options: BatchOptions, idempotency_key: str | None, size_bytes: int) -> Call[Batch]:
    """POST /v1/batches, whose body are lines of JSON."""
    given = {"name": options.name, "timeout_s": options.timeout_s, "webhook": options.webhook}
    query = [(name, str(value)) for name, value in given.items() if value is not None]
    query += [("label", f"{name}={value}") for name, value in (options.labels or {}).items()]
    headers = {
        "Content-Type": JSONL,
        "Content-Length": str(size_bytes),
        # A key of its own: an answer that was lost on the way makes no second batch.
        "Idempotency-Key": idempotency_key or uuid.uuid4().hex,
    }
    # Every line is checked before the answer.
    return Call("POST", f"/v1/batches{_query(query)}", model(Batch), headers=headers, hold_s=300)


def get(batch_id: str) -> Call[Batch]:
    """GET /v1/batches/{id}."""
    return Call("GET", path(batch_id), model(Batch))


def newest(limit: int) -> Call[tuple[Batch, ...]]:
    """GET /v1/batches."""

    def read(raw: bytes) -> tuple[Batch, ...]:
        return tuple(map(Batch.model_validate, json.loads(raw)["batches"]))

    return Call("GET", "/v1/batches", read, query={"limit": limit})


def move(batch_id: str, verb: str) -> Call[Batch]:
    """POST /v1/batches/{id}/{verb}. A second retry would be another round."""
    return Call("POST", path(batch_id, verb), model(Batch), repeatable=verb != "retry")


def lines(batch_id: str, first: int) -> Call[tuple[BatchLine, ...]]:
    """GET /v1/batches/{id}/lines, a page of them."""

    def read(raw: bytes) -> tuple[BatchLine, ...]:
        return tuple(map(BatchLine.model_validate, json.loads(raw)["lines"]))

    return Call("GET", path(batch_id, "lines"), read, query={"first": first, "limit": PAGE_LINES})


def file(batch_id: str, name: str) -> Call[None]:
    """GET of one of the files of an ended batch."""
    return Call("GET", path(batch_id, name), nothing, hold_s=300)


def erase(batch_id: str) -> Call[None]:
    """DELETE /v1/batches/{id}."""
    return Call("DELETE", path(batch_id), nothing, repeatable=False)


def path(batch_id: str, *rest: str) -> str:
    """Where a batch is, or something of it."""
    return "/".join(["/v1/batches", quote(batch_id, safe="") or "-", *rest])


def _query(pairs: list[tuple[str, str]]) -> str:
    return f"?{urlencode(pairs)}" if pairs else ""


@contextmanager
def jsonl(specs: Specs | PathLike[str]) -> Iterator[Path]:
    """A file of one spec a line: the one that is named, or one made of them, so that it can be sent again."""
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
            self._released = self._released or line.status != "pending"
            page = (line.line - 1) // PAGE_LINES
            if line.ended and line.line in self._open.get(page, ()):
                self._open[page].discard(line.line)
                ended.append(line)
                if not self._open[page]:
                    del self._open[page]
        return ended

    @property
    def done(self) -> bool:
        """Whether all lines were seen to end."""
        return not self._open


def song_name(line: BatchLine, song: LineSong) -> str:
    """000017-yourname.mp3, and 000017-yourname-1.mp3 for its second song: as in the gateway's own songs.zip."""
    words = [f"{line.line:06d}", _NOT_OF_A_FILE_NAME.sub("_", line.custom_id or "")]
    words.append(str(song.index) if song.index else "")
    return "-".join(filter(None, words)) + f".{song.format}"


def is_fetched(path: Path, song: LineSong) -> bool:
    """Whether a song was fetched before."""
    return path.is_file() and path.stat().st_size == song.size_bytes
