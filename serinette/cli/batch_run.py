"""`serinette batch run`: a file of prompts sung into a directory, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from serinette.cli.batch_view import BatchView, show_end
from serinette.cli.exits import EXIT_PARTLY
from serinette.cli.terminal import errors, output, program
from serinette.client import Batch, BatchLine, BatchOptions, Client, Fetched
from serinette.errors import ConfigurationError, NotFound, RequestError

NOTE = ".serinette-batch.json"


class Note(BaseModel):
    """What is remembered in the directory between two runs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str  # the same batch, however often it is sent
    sha256: str  # of the prompts
    server: str
    batch_id: str | None = None


@dataclass(frozen=True, slots=True)
class Errand:
    """What to sing, and where to."""

    prompts: Path
    directory: Path
    options: BatchOptions


def run_errand(client: Client, errand: Errand, *, retry: bool, as_json: bool) -> None:
    """Begin or go on; ends with exit status 4 if songs are missing at the end.

    Raises:
        InvalidBatch: a line is wrong, nothing was begun.
        ConfigurationError: the directory holds the songs of something else.
    """
    batch = _begun(client, errand)
    if retry and batch.ended and batch.request_counts.completed < batch.request_counts.total:
        batch = client.batches.retry(batch.id)
    missing: list[BatchLine] = []
    files = size_bytes = 0
    try:
        with BatchView(batch.name or batch.id) as view:
            for told in client.batches.results(batch.id, errand.directory):
                if isinstance(told, Fetched):
                    files, size_bytes = files + len(told.files), size_bytes + _size(told)
                    missing += [] if told.files else [told.line]
                else:
                    batch = told
                    view.show(batch)
    except KeyboardInterrupt:
        errors.print(
            f"The batch goes on. To fetch the rest: the same command again, or {program()} batch show {batch.id}"
        )
        errors.print(f"                   To stop it:        {program()} batch cancel {batch.id}", soft_wrap=True)
        raise
    for name in ("output.jsonl", "errors.jsonl"):
        client.batches.download(batch.id, name, errand.directory / name)
    if as_json:
        ended = {**batch.model_dump(mode="json"), "files": files, "directory": str(errand.directory)}
        output.print_json(json.dumps(ended))
    else:
        show_end(missing, files, size_bytes, batch)
    if batch.request_counts.completed < batch.request_counts.total:
        raise typer.Exit(EXIT_PARTLY)


def _begun(client: Client, errand: Errand) -> Batch:
    """The batch of this directory: the one that was begun, or a new one. Noted before it is sent, so that a run that
    dies in between leads to the same one.
    """
    sha256 = hashlib.sha256(errand.prompts.read_bytes()).hexdigest()
    path = errand.directory / NOTE
    note = _noted(path) or Note(key=uuid.uuid4().hex, sha256=sha256, server=client.url)
    if (note.sha256, note.server) != (sha256, client.url):
        what = "other prompts" if note.sha256 != sha256 else f"the server {note.server}"
        raise ConfigurationError(
            f"{errand.directory} holds the songs of {what}: give another --output, or erase {path}"
        )
    if note.batch_id is not None:
        try:
            return client.batches.get(note.batch_id)
        except NotFound as error:
            raise ConfigurationError(f"{error.message}: erase {path} to generate it again") from error
    made_here = not errand.directory.exists()
    errand.directory.mkdir(parents=True, exist_ok=True)
    path.write_text(note.model_dump_json())
    try:
        batch = client.batches.create(errand.prompts, errand.options, idempotency_key=note.key)
    except RequestError:  # nothing was begun; after any other error the next run asks again, under the same key
        path.unlink()
        if made_here:
            errand.directory.rmdir()
        raise
    path.write_text(note.model_copy(update={"batch_id": batch.id}).model_dump_json())
    errors.print(f"Batch {batch.id}: {batch.request_counts.total:,} songs", style="dim", soft_wrap=True)
    return batch


def _noted(path: Path) -> Note | None:
    try:
        return Note.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ConfigurationError(f"{path} cannot be read: erase it to begin again") from error


def _size(fetched: Fetched) -> int:
    return sum(song.size_bytes for song in fetched.line.artifacts)
