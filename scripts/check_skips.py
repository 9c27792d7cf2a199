"""Compare the tests that were skipped with those that may be: a test that quietly stops running is a hole.

    python scripts/check_skips.py build/tests.xml tests/skips.txt

A line of the list is `test id | why`; a `?` before the id means: skipped on some machines, run on others.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path


def cases(report: str) -> dict[str, str | None]:
    """Id of every test in pytest's JUnit report, with the reason if it was skipped."""
    found: dict[str, str | None] = {}
    for case in ET.fromstring(report).iter("testcase"):  # noqa: S314  # our own pytest wrote it
        element = case.find("skipped")
        why = None if element is None or element.get("type") == "pytest.xfail" else element.get("message") or ""
        found["::".join(filter(None, (case.get("classname"), case.get("name"))))] = why
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


def complaints(found: dict[str, str | None], listed: dict[str, str], optional: set[str]) -> list[str]:
    """Skips that are not listed, listed tests that run or do not exist, and lines without a reason."""
    skips = {name: why for name, why in found.items() if why is not None}
    wrong = [f"{name}: skipped ({why}), but not in the list" for name, why in skips.items() if name not in listed]
    wrong += [f"{name}: in the list, but it was not skipped" for name in listed if name not in skips.keys() | optional]
    wrong += [f"{name}: the list gives no reason" for name, why in listed.items() if not why]
    # A file that is skipped whole has one case of its own; that of a file that runs has none.
    files = {name.partition("::")[0] for name in found}
    gone = [name for name in optional - found.keys() if name not in files and name.partition("::")[0] not in skips]
    return wrong + [f"{name}: in the list, but there is no such test" for name in sorted(gone)]


def main(report: str, list_path: str) -> int:
    """Print every skipped test, then what differs."""
    found = cases(Path(report).read_text())
    skips = sorted((name, why) for name, why in found.items() if why is not None)
    print("\n".join(f"skipped: {name}: {why}" for name, why in skips))
    wrong = complaints(found, *expected(Path(list_path).read_text()))
    print("\n".join(wrong) or f"{len(skips)} tests skipped, all of them as {list_path} says")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
