"""A ValidatingAdmissionPolicy run as an API server runs it, by a CEL of its own."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from celpy.celtypes import MapType, StringType
from celpy.evaluation import CELEvalError


def denied(spec: dict[str, Any], user: str, new: dict[str, Any] | None, old: dict[str, Any] | None = None) -> list[str]:
    """The messages of the validations that do not hold; one that cannot be evaluated denies too (failurePolicy).

    Without `old` something is created, without `new` deleted.
    """
    assert spec["failurePolicy"] == "Fail"
    operation = "DELETE" if new is None else "UPDATE" if old else "CREATE"
    given: dict[str, Any] = {"object": json_to_cel(new), "oldObject": json_to_cel(old)}
    given["request"] = json_to_cel({"userInfo": {"username": user}, "operation": operation})
    assert all(evaluated(condition["expression"], given) for condition in spec["matchConditions"])
    variables = given["variables"] = MapType()
    for variable in spec["variables"]:
        with suppress(CELEvalError):  # an API server evaluates what is asked for: what is not there fails then
            variables[StringType(variable["name"])] = _program(variable["expression"]).evaluate(given)
    return [each["message"] for each in spec["validations"] if not evaluated(each["expression"], given)]


def evaluated(expression: str, given: dict[str, Any]) -> Any:
    """What an expression comes to; False when it cannot be evaluated."""
    try:
        return _program(expression).evaluate(given)
    except CELEvalError:
        return False


@cache
def _program(expression: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))
