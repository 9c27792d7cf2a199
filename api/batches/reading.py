"""A batch's lines as they came, one at a time: a JSONL file, or a JSON body with specs and a sweep."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from serinette.batch import MAX_LINES, BatchOptions, BatchSpec, Span
from serinette.errors import InvalidBatch, InvalidSpec
from serinette.spec import invalid_spec

# One line; the longest fields of a spec fit three times over.
MAX_LINE_BYTES = 1_048_576
# So many complaints are told of one batch.
MAX_ERRORS = 100

Line = bytes | dict[str, Any]


class LineError(NamedTuple):
    """What is wrong with one line, the first being 1."""

    line: int
    field: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Wrong:
    """Why a line is no song."""

    errors: tuple[LineError, ...]


def jsonl(path: Path) -> Iterator[bytes]:
    """The lines of a JSONL file, an empty last one left out.

    Raises:
        InvalidBatch: a line is too long to be read, or there are too many of them.
    """
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                told = LineError(number, None, f"is longer than {MAX_LINE_BYTES} bytes")
                raise refused([told])
            if number > MAX_LINES:
                raise InvalidBatch(f"a batch has at most {MAX_LINES} lines; make several of them")
            yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def inline(path: Path) -> tuple[BatchOptions, Iterator[dict[str, Any]]]:
    """Options and lines of a JSON body.

    Raises:
        InvalidBatch: it is not one, or it makes too many lines.
    """
    try:
        body = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidBatch(f"the body is not JSON: {str(error)[:200]}") from error
    if not isinstance(body, dict):
        raise InvalidBatch("the body must be a JSON object with `specs`; send JSON Lines as application/jsonl")
    specs, sweep = body.pop("specs", None), body.pop("sweep", None) or {}
    if not isinstance(specs, list) or not specs or not all(isinstance(spec, dict) for spec in specs):
        raise InvalidBatch("specs: must be a list of at least one spec, each an object", field="specs")
    options = options_of(body)
    names, values = _sweep(sweep)
    count = len(specs)
    for each in values:
        count *= len(each)
    if count > MAX_LINES:
        raise InvalidBatch(f"specs and sweep make {count} songs; a batch has at most {MAX_LINES}", field="sweep")
    return options, _swept(specs, names, values)


def options_of(given: dict[str, Any]) -> BatchOptions:
    """All but the lines. Raises InvalidSpec."""
    try:
        return BatchOptions.model_validate(given)
    except ValidationError as error:
        raise invalid_spec(error) from error


def _sweep(sweep: object) -> tuple[list[str], list[list[Any] | range]]:
    if not isinstance(sweep, dict):
        raise InvalidBatch("sweep: must be an object of a spec's fields", field="sweep")
    values: list[list[Any] | range] = []
    for name, given in sweep.items():
        if name not in BatchSpec.model_fields or name == "custom_id":
            raise InvalidBatch(f"sweep.{name[:80]}: is no field of a spec that can be swept", field="sweep")
        if isinstance(given, list) and given:
            values.append(given)
            continue
        try:
            span = Span.model_validate(given)
        except ValidationError as error:
            message = f"sweep.{name}: must be a list of at least one value, or {{first, count}}"
            raise InvalidBatch(message, field="sweep") from error
        values.append(range(span.first, span.first + span.count))
    return list(sweep), values


def _swept(specs: list[dict[str, Any]], names: list[str], values: list[list[Any] | range]) -> Iterator[dict[str, Any]]:
    for spec in specs:
        for chosen in itertools.product(*values):
            yield {**spec, **dict(zip(names, chosen, strict=True))}


def read_line(number: int, line: Line) -> BatchSpec | Wrong:
    """One line as a spec; all that is wrong with it otherwise."""
    if isinstance(line, bytes) and not line.strip():
        return Wrong((LineError(number, None, "is empty: a line is a JSON object"),))
    try:
        if isinstance(line, bytes):
            return BatchSpec.model_validate_json(line)
        return BatchSpec.model_validate(line)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return Wrong(tuple(_told(number, dict(each)) for each in found))


def _told(number: int, error: dict[str, Any]) -> LineError:
    message = error["msg"].removeprefix("Value error, ")
    field = ".".join(str(part) for part in error["loc"]) or None
    if error["type"] in {"too_long", "extra_forbidden"} and field is None:  # of the whole; it names the field itself
        field, _, message = message.partition(": ")
    return LineError(number, field, message)


def refused(errors: list[LineError]) -> InvalidBatch:
    """One error for all that is wrong."""
    first = errors[0]
    where = f"{first.field}: " if first.field else ""
    more = f"; {len(errors) - 1} more are in `errors`" if len(errors) > 1 else ""
    if len(errors) >= MAX_ERRORS:
        more = f"; the first {MAX_ERRORS} of what is wrong are in `errors`"
    message = f"line {first.line}: {where}{first.message}{more}; nothing of the batch was kept"
    error = InvalidBatch(message, field=first.field)
    error.lines = tuple(errors[:MAX_ERRORS])
    return error


def line_of(number: int, error: InvalidSpec) -> LineError:
    """An error of a check that knows no lines."""
    message = error.message.removeprefix(f"{error.field}: ") if error.field else error.message
    return LineError(number, error.field, message)
