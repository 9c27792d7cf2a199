"""What generators of clients need of the OpenAPI document: names of calls, no defaults to demand, a document for each
API. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from api.dialects.dialect import Dialect

TAGS = {
    "jobs": "Songs: submit, follow, download, cancel, erase.",
    "batches": "Many songs in one request, released as the queue has room.",
    "uploads": "Audio to work on, and files for containers.",
    "containers": "An image and a command as a job, where the operator enables them.",
    "queue": "Lanes, workers and models.",
    "operator": "All pools and tenants, for keys with a right to see them.",
    "usage": "What the key's tenant used, and may.",
    "health": "Whether the gateway lives, is ready, and has workers.",
}
OURS = "v1"


def documents(whole: dict[str, Any], dialects: Sequence[Dialect]) -> dict[str, dict[str, Any]]:
    """A document for each API, by its name: ours is `v1`, a dialect's that of its folder. Pure."""
    theirs = {dialect.tag: dialect.name for dialect in dialects}
    found: dict[str, dict[str, Any]] = {}
    for name in (OURS, *theirs.values()):
        paths = {
            path: own
            for path, calls in whole["paths"].items()
            if (own := {method: call for method, call in calls.items() if theirs.get(call["tags"][0], OURS) == name})
        }
        tags = {call["tags"][0] for calls in paths.values() for call in calls.values()}
        found[name] = {
            **whole,
            "info": {**whole["info"], "title": f"{whole['info']['title']}: {name}"},
            "tags": [tag for tag in whole["tags"] if tag["name"] in tags],
            "paths": paths,
            "components": _used(whole["components"], paths),
        }
    return found


def _used(components: dict[str, Any], paths: object) -> dict[str, Any]:
    """The components that paths refer to, and those that these refer to."""
    used: dict[str, Any] = {"securitySchemes": components.get("securitySchemes", {})}
    left = _references(paths)
    while left:
        kind, name = left.pop().split("/")[2:]
        if name not in used.setdefault(kind, {}):
            used[kind][name] = components[kind][name]
            left |= _references(used[kind][name])
    return used


def _references(part: object) -> set[str]:
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own.union(*map(_references, part.values()))
    return set().union(*map(_references, part)) if isinstance(part, list) else set()


def operation_id(function: str) -> str:
    """The name that generated clients give to a call, by that of its function: `submitJob` of `submit_job`. Pure."""
    first, *rest = function.split("_")
    return first + "".join(word.capitalize() for word in rest)


def describe_defaults(document: dict[str, Any]) -> None:
    """Say in words what is used for a field that is left out, where only requests have it: openapi-typescript takes a
    field with a default for one that is always there, and would demand it of clients.
    """
    calls = [call for calls in document["paths"].values() for call in calls.values()]
    components = document["components"]
    asked = _used(components, [call.get("requestBody", {}) for call in calls]).get("schemas", {})
    answered = _used(components, [call["responses"] for call in calls]).get("schemas", {})
    for schema in (asked[name] for name in asked.keys() - answered.keys()):
        for part in schema.get("properties", {}).values():
            default = part.pop("default", None)
            if default not in (None, "", [], {}):
                part["description"] = f"{part.get('description', '')} Default: {json.dumps(default)}.".lstrip()
