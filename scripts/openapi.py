"""Write the gateway's OpenAPI document, or check it: that it is current, and that `/v1` only ever gained.

python scripts/openapi.py            writes docs/openapi.json
python scripts/openapi.py --check    compares with it, and with the one of the last tag
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from api.app import create_app
from api.settings import GatewaySettings

PAGE = Path(__file__).parent.parent / "docs" / "openapi.json"
Document = dict[str, Any]


def main() -> int:
    """0 when all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    document = current()
    if not parser.parse_args().check:
        PAGE.write_text(text_of(document))
        return 0
    complaints = []
    if not PAGE.exists() or PAGE.read_text() != text_of(document):
        complaints.append("docs/openapi.json is not what the gateway serves: run `make openapi` and commit it")
    if released := last_release():
        complaints += losses(released, document)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


def current() -> Document:
    """The document that the gateway serves."""
    with tempfile.TemporaryDirectory() as directory:
        return create_app(GatewaySettings.model_validate({"store_url": f"file://{directory}"})).openapi()


def text_of(document: Document) -> str:
    """As it is committed."""
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def last_release() -> Document | None:
    """The document of the last tag, if there is a tag and it had one."""
    git = ["git", "-C", str(PAGE.parent)]
    tag = subprocess.run([*git, "describe", "--tags", "--abbrev=0"], capture_output=True, text=True, check=False)
    if tag.returncode:
        return None
    shown = subprocess.run(
        [*git, "show", f"{tag.stdout.strip()}:docs/openapi.json"], capture_output=True, text=True, check=False
    )
    return None if shown.returncode else json.loads(shown.stdout)


def losses(old: Document, new: Document) -> Iterator[str]:
    """What clients of `/v1` could rely on in `old` and no longer can in `new`."""
    for path, methods in old["paths"].items():
        if not path.startswith("/v1/"):
            continue
        for method, operation in methods.items():
            where = f"{method.upper()} {path}"
            now = new["paths"].get(path, {}).get(method)
            if now is None:
                yield f"{where} is gone"
                continue
            yield from _lost_parameters(where, operation, now)
            yield from _Comparison(old, new, asked=True).content(
                where, operation.get("requestBody"), now.get("requestBody")
            )
            for status, answer in operation["responses"].items():
                if status not in now["responses"]:
                    yield f"{where}: answer {status} is gone"
                    continue
                comparison = _Comparison(old, new, asked=False)
                yield from comparison.content(f"{where} {status}", answer, now["responses"][status])


def _lost_parameters(where: str, old: Document, new: Document) -> Iterator[str]:
    before = {(p["in"], p["name"]): p for p in old.get("parameters", [])}
    after = {(p["in"], p["name"]): p for p in new.get("parameters", [])}
    for place, name in before.keys() - after.keys():
        yield f"{where}: {place} parameter {name} is gone"
    for key, parameter in after.items():
        if parameter.get("required") and not before.get(key, {}).get("required"):
            yield f"{where}: {key[0]} parameter {key[1]} is required now"


class _Comparison:
    """Two schemas side by side: what a client may send (`asked`) or receives."""

    def __init__(self, old: Document, new: Document, *, asked: bool) -> None:
        self._old = old
        self._new = new
        self._asked = asked
        self._seen: set[tuple[str, str]] = set()

    def content(self, where: str, old: Document | None, new: Document | None) -> Iterator[str]:
        """Compare the bodies of a request or an answer."""
        for kind, body in (old or {}).get("content", {}).items():
            now = (new or {}).get("content", {}).get(kind)
            if now is None:
                yield f"{where}: {kind} is gone"
            else:
                yield from self.schema(where, body.get("schema", {}), now.get("schema", {}))

    def schema(self, where: str, old: Document, new: Document) -> Iterator[str]:
        """Compare two schemas, following references once."""
        pair = (old.get("$ref", ""), new.get("$ref", ""))
        if all(pair):
            if pair in self._seen:
                return
            self._seen.add(pair)
        old, new = _followed(self._old, old), _followed(self._new, new)
        if old.get("type") != new.get("type"):
            yield f"{where}: type {old.get('type')} became {new.get('type')}"
        accepted: list[object] = old.get("enum", [])
        gone = {str(value) for value in accepted if value not in new.get("enum", accepted)}
        if gone and self._asked:
            yield f"{where}: no longer accepts {', '.join(sorted(gone))}"
        yield from self._properties(where, old, new)
        for key in ("items", "additionalProperties"):
            if isinstance(old.get(key), dict):
                yield from self.schema(f"{where}[]", old[key], new.get(key) or {})
        for key in ("anyOf", "oneOf", "allOf"):
            if len(old.get(key, [])) > len(new.get(key, [])):
                yield f"{where}: one of the alternatives is gone"
            for before, after in zip(old.get(key, []), new.get(key, []), strict=False):
                yield from self.schema(where, before, after)

    def _properties(self, where: str, old: Document, new: Document) -> Iterator[str]:
        for name, before in old.get("properties", {}).items():
            after = new.get("properties", {}).get(name)
            if after is None:
                yield f"{where}: field {name} is gone"
            else:
                yield from self.schema(f"{where}.{name}", before, after)
        if self._asked:
            for name in set(new.get("required", [])) - set(old.get("required", [])):
                yield f"{where}: field {name} is required now"
        else:
            for name in set(old.get("required", [])) - set(new.get("required", [])):
                yield f"{where}: field {name} may be missing now"


def _followed(document: Document, schema: Document) -> Document:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


if __name__ == "__main__":
    sys.exit(main())
