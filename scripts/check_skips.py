"""Compare the tests that were skipped with those that may be: a test that quietly stops running is a hole.

    python scripts/check_skips.py build/tests.xml tests/skips.txt

A line of the list is `test id | why`; a `?` before the id means: skipped on some machines, run on others.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def skipped(report: str) -> dict[str, str]:
    """Id and reason of every skipped test in pytest's JUnit report."""
    found = {}
    for case in ET.fromstring(report).iter("testcase"):  # noqa: S314  # our own pytest wrote it
        element = case.find("skipped")
        if element is not None and element.get("type") != "pytest.xfail":
            found["::".join(filter(None, (case.get("classname"), case.get("name"))))] = element.get("message") or ""
    return found


def expected(text: str) -> tuple[dict[str, str], set[str]]:
    """Ids with reasons as listed, and those among them that some machines run."""
    listed, optional = {}, set()
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, why = (part.strip() for part in line.partition("|"))
        if name.startswith("?"):
            name = name.removeprefix("?").strip()
            optional.add(name)
        listed[name] = why
    return listed, optional


def complaints(found: dict[str, str], listed: dict[str, str], optional: set[str]) -> list[str]:
    """Skips that are not listed, listed tests that run, and lines without a reason."""
    wrong = [f"{name}: skipped ({why}), but not in the list" for name, why in found.items() if name not in listed]
    wrong += [f"{name}: in the list, but it was not skipped" for name in listed if name not in found.keys() | optional]
    wrong += [f"{name}: the list gives no reason" for name, why in listed.items() if not why]
    return wrong


def main(report: str, list_path: str) -> int:
    """Print every skipped test, then what differs."""
    found = skipped(Path(report).read_text())
    listed, optional = expected(Path(list_path).read_text())
    for name, why in sorted(found.items()):
        print(f"skipped: {name}: {why}")
    wrong = complaints(found, listed, optional)
    print("\n".join(wrong) or f"{len(found)} tests skipped, all of them as {list_path} says")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
