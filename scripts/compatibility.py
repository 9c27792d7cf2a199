"""Write the tables of fields in docs/compatibility.md from the dialects' own tables, or check that they are current.

python scripts/compatibility.py            writes them, between the page's markers
python scripts/compatibility.py --check    compares with them
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from api.dialects.acestep.request import ReleaseTask
from api.dialects.acestep.table import TABLE as ACESTEP
from api.dialects.chat.request import ChatRequest
from api.dialects.chat.table import TABLE as CHAT
from api.dialects.fields import Table, To
from api.dialects.seed.request import GenerateMusicForm
from api.dialects.seed.table import FIELDS as SEED
from serinette.spec import GenerationSpec

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
TABLES: dict[str, tuple[Table, type[BaseModel]]] = {
    "seed": (SEED, GenerateMusicForm),
    "acestep": (ACESTEP, ReleaseTask),
    "chat": (CHAT, ChatRequest),
}
_LONGEST_DEFAULT = 24


def main() -> int:
    """0 when all is well."""
    written = PAGE.read_text()
    current = filled(written)
    if "--check" not in sys.argv:
        PAGE.write_text(current)
    elif written != current:
        print(
            "docs/compatibility.md is not what the dialects do: run `make compatibility` and commit it", file=sys.stderr
        )
        return 1
    return 0


def filled(page: str) -> str:
    """The page with its tables as they are now."""
    for name, (table, model) in TABLES.items():
        marked = re.compile(rf"(<!-- fields of {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if not marked.search(page):
            raise ValueError(f"the page has no place for the fields of {name}")
        text = "\n".join(rows(table, model))
        page = marked.sub(lambda match: f"{match[1]}{text}{match[2]}", page)  # noqa: B023  # called at once
    return page


def rows(table: Table, model: type[BaseModel]) -> Iterator[str]:
    """A row for each field; fields without a description that meet the same end share one."""
    yield "| field | bounds; left out | becomes | meaning |"
    yield "|---|---|---|---|"
    together: dict[tuple[str, str, str], list[str]] = {}
    for name, to in table.items():
        described = model.model_fields.get(name)
        about = (described.description if described else None) or ""
        alone = name if described and not described.json_schema_extra and to.neutral is None else ""
        key = (_bounds(name, to, model), _becomes(to), about)
        together.setdefault((*key[:2], f"{alone}\0{about}"), []).append(_spelled(name, to))
    for (bounds, becomes, marked), names in together.items():
        yield f"| {', '.join(names)} | {bounds} | {becomes} | {_cell(marked.partition(chr(0))[2])} |"


def _spelled(name: str, to: To) -> str:
    also = f" ({', '.join(f'`{other}`' for other in to.also)})" if to.also else ""
    return f"`{name}`{also}"


def _becomes(to: To) -> str:
    if to.refused:
        return "refused: 501"
    if to.ours:
        return f"`{to.ours}`" + (", converted" if to.convert else "")
    if to.convert:
        return "as described"
    if to.neutral is None:
        return "read with others"
    if not to.neutral:
        return "ignored, reported"
    return f"ignored, reported unless {' or '.join(f'`{_json(value)}`' for value in to.neutral)}"


def _bounds(name: str, to: To, model: type[BaseModel]) -> str:
    own = _schema(model, name)
    ours = _schema(GenerationSpec, to.ours) if to.ours else {}
    said = []
    if values := own.get("enum") or ours.get("enum"):
        said.append(", ".join(f"`{value}`" for value in values))
    bounds = {**_numbers(ours), **_numbers(own)}
    if {"minimum", "maximum"} <= bounds.keys():
        said.append(f"{bounds['minimum']:g} to {bounds['maximum']:g}" if bounds["maximum"] < 2**53 else "below 2^63")
    elif bounds:
        said.append(", ".join(f"{name} {value:g}" for name, value in bounds.items()))
    if longest := own.get("maxLength") or ours.get("maxLength"):
        said.append(f"{longest} characters")
    return "; ".join([", ".join(said), default] if (default := _default(name, model)) else [", ".join(said)]).lstrip(
        "; "
    )


def _schema(model: type[BaseModel], name: str | None) -> dict[str, Any]:
    schema = model.model_json_schema()
    part = schema["properties"].get(name, {})
    for choice in (part, *part.get("anyOf", ())):
        found = schema["$defs"][choice["$ref"].rpartition("/")[2]] if "$ref" in choice else choice
        if found.keys() & {"enum", "minimum", "maximum", "maxLength"}:
            return dict(found)
    return {}


def _numbers(schema: dict[str, Any]) -> dict[str, float]:
    return {name: schema[name] for name in ("minimum", "maximum") if name in schema}


def _default(name: str, model: type[BaseModel]) -> str:
    field = model.model_fields.get(name)
    default = field.default if field else None
    if default in (None, PydanticUndefined, (), ""):
        return ""
    text = str(default.value) if isinstance(default, Enum) else _json(default)
    return f"`{text}`" if len(text) <= _LONGEST_DEFAULT else "an example"


def _json(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
