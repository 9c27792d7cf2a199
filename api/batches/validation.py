"""A batch's body read and checked, line by line, before anything of it is kept: JSON Lines, or JSON with a sweep."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from serinette.batch import MAX_LINES, BatchOptions, BatchSpec, LineOrder, Span, line_seed
from serinette.errors import InvalidBatch, InvalidSpec
from serinette.spec import GenerationSpec, invalid_spec

# One line; the longest fields of a spec fit three times over.
MAX_LINE_BYTES = 1_048_576
# So many errors of one batch are reported.
MAX_ERRORS = 100

Line = bytes | dict[str, Any]
LineError = tuple[int, str | None, str]  # line from 1, field, message
# What must hold of a song beyond its own bounds; answers the pool that generates it, and for how many seconds it may.
# Raises InvalidSpec.
Check = Callable[[GenerationSpec], tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Checked:
    """A batch all of whose lines are valid. `parts`: files of LineOrder as JSON Lines."""

    total: int
    digest: str
    parts: Sequence[Path]
    sources: tuple[str, ...]


def read_jsonl(path: Path) -> Iterator[bytes]:
    """The lines of a JSONL file. Blank ones are left out, and are not counted.

    Raises:
        InvalidBatch: a line is too long to be read, or there are too many of them.
    """
    with path.open("rb") as file:
        # Before the first of them is checked: it takes a second to check some thousand.
        count, chunk = 0, b"\n"
        for chunk in iter(partial(file.read, MAX_LINE_BYTES), b""):
            count += chunk.count(b"\n")
        if count + (not chunk.endswith(b"\n")) > MAX_LINES:
            raise InvalidBatch(f"a batch has at most {MAX_LINES} lines; make several of them")
        file.seek(0)
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), start=1):
            if len(line) > MAX_LINE_BYTES:
                raise _invalid([(number, None, f"is longer than {MAX_LINE_BYTES} bytes")])
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if content.strip():
                yield content


def read_json(path: Path) -> tuple[BatchOptions, Iterator[dict[str, Any]]]:
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
    if not isinstance(sweep, dict):
        raise InvalidBatch("sweep: must be an object of a spec's fields", field="sweep")
    values = [_swept_values(name, given) for name, given in sweep.items()]
    count = len(specs) * math.prod(map(len, values))
    if count > MAX_LINES:
        raise InvalidBatch(f"specs and sweep make {count} songs; a batch has at most {MAX_LINES}", field="sweep")
    chosen = itertools.product(specs, *values)
    return options, ({**spec, **dict(zip(sweep, each, strict=True))} for spec, *each in chosen)


def options_of(given: dict[str, Any]) -> BatchOptions:
    """All but the lines. Raises InvalidSpec."""
    try:
        return BatchOptions.model_validate(given)
    except ValidationError as error:
        raise invalid_spec(error) from error


def _swept_values(name: str, given: object) -> list[Any] | range:
    if name not in BatchSpec.model_fields or name == "custom_id":
        raise InvalidBatch(f"sweep.{name[:80]}: is no field of a spec that can be swept", field="sweep")
    if isinstance(given, list) and given:
        return given
    try:
        span = Span.model_validate(given)
    except ValidationError as error:
        message = f"sweep.{name}: must be a list of at least one value, or {{first, count}}"
        raise InvalidBatch(message, field="sweep") from error
    return range(span.first, span.first + span.count)


class LineChecker:
    """Checks the lines of one batch, and writes them as its jobs will need them: into files of `part_lines` each."""

    def __init__(self, batch_id: str, directory: Path, part_lines: int, check: Check) -> None:
        self._batch_id = batch_id
        self._directory = directory
        self._part_lines = part_lines
        self._check = check
        self._errors: list[LineError] = []
        self._custom_ids: dict[str, int] = {}
        self._sources: set[str] = set()

    def __call__(self, options: BatchOptions, lines: Iterable[Line]) -> Checked:
        """Check all lines.

        Raises:
            InvalidBatch: some lines are wrong, or there is none; it names the first MAX_ERRORS things.
        """
        sorted_labels = options.model_copy(update={"labels": dict(sorted(options.labels.items()))})
        digest = hashlib.sha256(sorted_labels.model_dump_json().encode())
        parts: list[Path] = []
        total = 0
        file: BinaryIO | None = None
        with ExitStack() as files:
            for total, line in enumerate(lines, start=1):
                order = self._order(total, line)
                if len(self._errors) >= MAX_ERRORS:
                    break
                if file is None or total > len(parts) * self._part_lines:
                    files.close()
                    parts.append(self._directory / f"part-{len(parts)}")
                    file = files.enter_context(parts[-1].open("wb"))
                if order:
                    digest.update(json.dumps([order.custom_id, order.digest]).encode())
                    file.write(order.model_dump_json().encode() + b"\n")
        if self._errors:
            raise _invalid(self._errors)
        if not total:
            raise InvalidBatch("the batch has no lines; send a JSON object a line, or `specs`")
        return Checked(total, digest.hexdigest(), parts, tuple(sorted(self._sources)))

    def _order(self, number: int, line: Line) -> LineOrder | None:
        """One line as it will be kept; None of a wrong line, which is among the errors."""
        try:
            read = _parse(line)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            self._errors += [(number, *_complaint(dict(each))) for each in found]
            return None
        except InvalidSpec as error:
            self._errors.append((number, None, error.message))
            return None
        if read.custom_id is not None and (first := self._custom_ids.setdefault(read.custom_id, number)) != number:
            self._errors.append((number, "custom_id", f"is that of line {first} already; give each its own"))
            return None
        song = read.only(GenerationSpec)
        try:
            pool, timeout_s = self._check(song)
        except InvalidSpec as error:
            self._errors.append((number, error.field, error.message.removeprefix(f"{error.field}: ")))
            return None
        sources = filter(None, (song.source_audio, song.reference_audio))
        self._sources.update(source.partition("/")[0] for source in sources)
        digest = song.digest()
        if song.seed is None:
            song = song.model_copy(update={"seed": line_seed(self._batch_id, number - 1)})
        return LineOrder(custom_id=read.custom_id, pool=pool, digest=digest, timeout_s=timeout_s, spec=song.to_wire())


def _parse(line: Line) -> BatchSpec:
    if isinstance(line, dict):
        return BatchSpec.model_validate(line)
    return BatchSpec.model_validate_json(line)


def _complaint(error: dict[str, Any]) -> tuple[str | None, str]:
    message = error["msg"].removeprefix("Value error, ")
    field = ".".join(str(part) for part in error["loc"]) or None
    if (
        error["type"] in {"too_long", "extra_forbidden", "number_type"} and field is None
    ):  # of the whole; it names the field itself
        field, _, message = message.partition(": ")
    return field, message


def _invalid(errors: list[LineError]) -> InvalidBatch:
    """One error for all that is wrong."""
    line, field, message = errors[0]
    more = f"; {len(errors) - 1} more are in `errors`" if len(errors) > 1 else ""
    if len(errors) >= MAX_ERRORS:
        more = f"; the first {MAX_ERRORS} of what is wrong are in `errors`"
    where = f"{field}: " if field else ""
    error = InvalidBatch(f"line {line}: {where}{message}{more}; nothing of the batch was kept", field=field)
    error.lines = tuple(errors[:MAX_ERRORS])
    return error
