"""The table of a dialect's fields: theirs, ours, how one becomes the other, and what is reported of it. Pure.

A dialect's request is a pydantic model, which has types, bounds and descriptions; its table has a row for each field:
`"inference_steps": To("steps")`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from serinette.errors import InvalidSpec, Unsupported
from serinette.job import Job
from serinette.spec import GenerationSpec, invalid_spec

Request = TypeVar("Request", bound=BaseModel)

_MAX_LISTED_NAMES: Final = 32
_LEADING = re.compile(r"^(\w+)(?=[:.])")


@dataclass(frozen=True, slots=True)
class To:
    """What becomes of a field of theirs; a null field has no effect.

    `ours` is the spec's field. `convert` takes the value and the conversion and returns our value, or None to leave it
    out; it may add to the conversion. `refused` says why a field that is asked for cannot be.
    `neutral` are the values of a field without counterpart that mean what is done anyway: any other is listed as
    ignored. `also` are further names.
    """

    ours: str | None = None
    convert: Callable[[Any, Any], object] | None = None
    also: tuple[str, ...] = ()
    neutral: tuple[object, ...] | None = None
    refused: str | None = None


Table = Mapping[str, To]


@dataclass(frozen=True, slots=True)
class Adjusted:
    """A value that is not used as it was sent, and why."""

    field: str
    sent: object
    used: object
    reason: str


@dataclass(slots=True)
class Conversion(Generic[Request]):
    """A request on its way to a spec. `models` are the names of models that workers or pools hold; `field` is the row
    that is being converted.
    """

    request: Request
    models: frozenset[str] = frozenset()
    field: str = ""
    fields: dict[str, Any] = dataclass_field(default_factory=dict)
    adjusted: list[Adjusted] = dataclass_field(default_factory=list)
    ignored: list[str] = dataclass_field(default_factory=list)

    def adjust(self, reason: str, used: object = None, field: str = "") -> None:
        """Note that a field's value, of the present row if it is not named, is not used as it was sent."""
        name = field or self.field
        self.adjusted.append(Adjusted(name, getattr(self.request, name), used, reason))

    def wrong(self, reason: str) -> InvalidSpec:
        """The refusal of the present row's value."""
        return InvalidSpec(f"{self.field}: {reason}", field=self.field)

    def spec(self) -> GenerationSpec:
        """The spec of all that was converted.

        Raises:
            InvalidSpec: a field is out of bounds; it is named as ours.
        """
        try:
            return GenerationSpec(**self.fields)
        except ValidationError as error:
            raise invalid_spec(error) from error


def convert(
    table: Table,
    request: Request,
    others: Mapping[str, object] | None = None,
    models: frozenset[str] = frozenset(),
) -> Conversion[Request]:
    """Take every row of the table in turn. `others` are values of fields that the request's model does not have.

    Raises:
        InvalidSpec: a value means nothing here.
        Unsupported: a field that is refused was asked for.
    """
    conversion = Conversion(request, models)
    values = {**(others or {}), **dict(request)}
    sent = [(name, to, values[name]) for name, to in table.items() if values.get(name) is not None]
    for name, to, value in sent:
        if to.refused and value and str(value).strip():
            raise Unsupported(f"{name}: {to.refused}", field=name)
    for name, to, value in sent:
        conversion.field = name
        if to.neutral is not None and _plain(value) not in to.neutral:
            conversion.ignored.append(name)
        used = to.convert(value, conversion) if to.convert else value
        if to.ours is not None and used is not None:
            conversion.fields[to.ours] = used
    conversion.ignored += listed(request.model_extra or ())
    return conversion


def _plain(value: object) -> object:
    """A form's text as the value that it stands for."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in {"true", "false"}:
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def listed(names: Iterable[str]) -> list[str]:
    """Names that a client made up, cut to what an answer repeats of them."""
    return [name[:64] for name in names][:_MAX_LISTED_NAMES]


def sentences(adjusted: Iterable[Adjusted], ignored: Sequence[str]) -> list[str]:
    """A sentence for each value that is not used as sent, and one for all fields without effect."""
    said = [f"{each.field}: {each.reason}" for each in adjusted]
    if ignored:
        shown = listed(ignored)
        more = f" and {len(ignored) - len(shown)} more" if len(ignored) > len(shown) else ""
        said.append(f"without effect here: {', '.join(shown)}{more}")
    return said


def recorded(api: str, warnings: Sequence[str]) -> dict[str, str]:
    """What travels with a job for the answers: the dialect that it came by, and what was not done as asked."""
    return {"api": api, "warnings": json.dumps(warnings, ensure_ascii=False)}


def warnings_of(job: Job, api: str) -> list[str]:
    """What `recorded` said of a job that came by this dialect."""
    said: list[str] = json.loads(job.dialect.get("warnings", "[]")) if job.dialect.get("api") == api else []
    return said


def renamer(table: Table) -> Callable[[str], str]:
    """What puts a sentence of ours into the field names of a table."""
    names = {to.ours: name for name, to in table.items() if to.ours and to.ours != name}
    # Only names that cannot be taken for a word of the sentence are replaced within it.
    within = re.compile(rf"\b({'|'.join(name for name in names if '_' in name) or '(?!)'})\b")

    def renamed(message: str) -> str:
        leading = _LEADING.sub(lambda match: names.get(match[1], match[1]), message)
        return within.sub(lambda match: names[match[1]], leading)

    return renamed
