"""What the methods on batches ask of the gateway. Pure, as calls.py is."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from serinette.client.answers import Batch, BatchLine
from serinette.client.calls import Call, model

PAGE_LINES = 250
JSONL = "application/jsonl"


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
    return Call("GET", path(batch_id, name), lambda _: None, hold_s=300)


def erase(batch_id: str) -> Call[None]:
    """DELETE /v1/batches/{id}."""
    return Call("DELETE", path(batch_id), lambda _: None, repeatable=False)


def path(batch_id: str, *rest: str) -> str:
    """Where a batch is, or something of it."""
    return "/".join(["/v1/batches", quote(batch_id, safe="") or "-", *rest])


def _query(pairs: list[tuple[str, str]]) -> str:
    return f"?{urlencode(pairs)}" if pairs else ""
