"""A batch's lines checked, each and all, and written down as its jobs will need them; before anything of it is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from api.batches.reading import MAX_ERRORS, Line, LineError, Wrong, line_of, read_line, refused
from serinette.batch import BatchOptions, BatchSpec, LineOrder, line_seed
from serinette.errors import InvalidBatch, InvalidSpec
from serinette.spec import GenerationSpec

# What must hold of a song beyond its own bounds; answers the pool that sings it, and for how many seconds
# it may. Raises InvalidSpec.
Check = Callable[[GenerationSpec], tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Checked:
    """A batch all of whose lines are well."""

    total: int
    digest: str
    parts: Sequence[Path]
    sources: tuple[str, ...]


@dataclass
class _Ledger:
    """What is gathered on the way through the lines."""

    frame: Frame
    errors: list[LineError] = field(default_factory=list)
    custom_ids: dict[str, int] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    parts: list[Path] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a batch's lines are written, and in parts of how many."""

    batch_id: str
    directory: Path
    part_lines: int


def check_lines(frame: Frame, options: BatchOptions, lines: Iterable[Line], check: Check) -> Checked:
    """Check every line and write the batch's parts.

    Raises:
        InvalidBatch: some lines are wrong, or there is none; it names the first MAX_ERRORS things.
    """
    seen = _Ledger(frame)
    digest = hashlib.sha256(options.model_dump_json().encode())
    total = 0
    file: BinaryIO | None = None
    try:
        for total, order in enumerate(_orders(seen, lines, check), start=1):
            if (total - 1) % frame.part_lines == 0:
                if file:
                    file.close()
                seen.parts.append(frame.directory / f"part-{len(seen.parts)}")
                file = seen.parts[-1].open("wb")
            if order is None or file is None:
                continue
            digest.update(json.dumps([order.custom_id, order.digest]).encode())
            file.write(order.model_dump_json().encode() + b"\n")
    finally:
        if file:
            file.close()
    if seen.errors:
        raise refused(seen.errors)
    if not total:
        raise InvalidBatch("the batch has no lines; send a JSON object a line, or `specs`")
    return Checked(total, digest.hexdigest(), seen.parts, tuple(sorted(seen.sources)))


def _orders(seen: _Ledger, lines: Iterable[Line], check: Check) -> Iterator[LineOrder | None]:
    for number, line in enumerate(lines, start=1):
        if len(seen.errors) >= MAX_ERRORS:
            return
        read = read_line(number, line)
        if isinstance(read, Wrong):
            seen.errors += read.errors
            yield None
        else:
            yield _order(seen, number, read, check)


def _order(seen: _Ledger, number: int, read: BatchSpec, check: Check) -> LineOrder | None:
    if read.custom_id is not None:
        first = seen.custom_ids.setdefault(read.custom_id, number)
        if first != number:
            seen.errors.append(LineError(number, "custom_id", f"is that of line {first} already; give each its own"))
            return None
    song = read.song()
    try:
        pool, timeout_s = check(song)
    except InvalidSpec as error:
        seen.errors.append(line_of(number, error))
        return None
    for source in (song.source_audio, song.reference_audio):
        if source:
            seen.sources.add(source.partition("/")[0])
    digest = song.digest()
    if song.seed is None:
        song = song.model_copy(update={"seed": line_seed(seen.frame.batch_id, number - 1)})
    return LineOrder(custom_id=read.custom_id, pool=pool, digest=digest, timeout_s=timeout_s, spec=song.to_wire())
