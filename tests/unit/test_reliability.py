"""docs/reliability.md promises by name: every test that it names exists, and every row names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from scripts.check_benchmarks import FIGURE, LINK, wrong_link

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD = re.compile(r"\| (fault|what stops|RQ|killed) \|")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def defined_in(path: Path) -> set[str]:
    """Names of the tests in a file."""
    defined = ast.walk(ast.parse(path.read_text()))
    return {
        node.name
        for node in defined
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def missing(page: str, root: Path) -> list[str]:
    """Tests that the page names and that do not exist."""
    return [
        f"{file}::{name}"
        for file, name in NAMED.findall(page)
        if not (root / file).is_file() or name not in defined_in(root / file)
    ]


def untested(page: str) -> list[str]:
    """Rows of its tables that name no test."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    return [row for row in rows if not (NAMED.search(row) or "benchmarks/results" in row or HEAD.match(row))]


def test_every_figure_is_a_raw_result() -> None:
    figures = [(text, to) for text, to in LINK.findall(PAGE.read_text()) if FIGURE.fullmatch(text)]
    assert figures
    assert [wrong for text, to in figures if (wrong := wrong_link(text, to, PAGE.parent))] == []


def test_every_promise_has_its_test() -> None:
    page = PAGE.read_text()
    assert len(NAMED.findall(page)) > 50
    assert missing(page, PAGE.parents[1]) == []
    assert untested(page) == []


@pytest.mark.parametrize("named", ["tests/unit/test_reliability.py::test_that_never_was", "tests/no_file.py::test_it"])
def test_what_does_not_exist_is_found(named: str) -> None:
    assert missing(f"| a | `{named}` |", PAGE.parents[1]) == [named]
    assert untested("| a fault | nothing |") == ["| a fault | nothing |"]
