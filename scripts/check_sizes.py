"""Files of at most 300 lines and functions of at most 40: what passes them is asking to be two.

Test files may have 450: they are lists of cases. A function's docstring does not count. Exceptions stand in
scripts/sizes.toml, each with its reason and its own bound.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_LINES = 300
TEST_FILE_LINES = 450
FUNCTION_LINES = 40


@dataclass(frozen=True, slots=True)
class Size:
    """Lines of a file (`path`) or a function (`path:Class.name`)."""

    name: str
    lines: int
    bound: int


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, less its docstring."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def functions(body: list[ast.stmt], prefix: str) -> Iterator[Size]:
    """All functions of a module or class; one inside another counts with it alone."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Size(f"{prefix}{node.name}", function_lines(node), FUNCTION_LINES)


def sizes(path: Path, name: str) -> Iterator[Size]:
    """The size of a file and of each function in it."""
    text = path.read_text()
    yield Size(name, len(text.splitlines()), TEST_FILE_LINES if name.startswith("tests/") else FILE_LINES)
    yield from functions(ast.parse(text).body, f"{name}:")


def complaints(measured: list[Size], allowed: dict[str, dict[str, object]]) -> list[str]:
    """What is too long, and which exceptions are idle, wrong or without a reason."""
    told = []
    used = set()
    for size in measured:
        if size.lines > size.bound:
            used.add(size.name)
        exception = allowed.get(size.name, {})
        bound = exception.get("lines", size.bound)
        if not isinstance(bound, int) or (exception and not exception.get("why")):
            told.append(f"{size.name}: an exception needs `lines` (a number) and `why`")
            continue
        if size.lines > bound:
            told.append(f"{size.name}: {size.lines} lines, at most {bound}: is it really one thing?")
    told += [f"{name}: needs no exception, take it out of scripts/sizes.toml" for name in allowed if name not in used]
    return told


def main() -> int:
    """Check every Python file that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    measured = [size for name in sorted(set(names)) if Path(name).is_file() for size in sizes(Path(name), name)]
    allowed = tomllib.loads(Path("scripts/sizes.toml").read_text())
    told = complaints(measured, allowed)
    print("\n".join(told) or f"{len(names)} files are of a size to be read")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
