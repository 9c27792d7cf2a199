"""Every figure in docs/benchmarks.md is a link to the raw result that holds it.

A figure is a number outside code, headings and link targets. It must be the whole text of a link such as
`[12.3](../benchmarks/results/2026-01-31-gateway.json#submits_per_s.median)`: the file must exist, the names behind `#`
must lead to a number in it, and that number, rounded to as many decimals, must be the one shown. Bounds and targets
stand in `code`; a row without a result says NOT MEASURED.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

PAGE = Path("docs/benchmarks.md")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]*)\)")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
FIGURE = re.compile(r"-?[\d ,]*\d(?:\.\d+)?")
RAW = re.compile(r"benchmarks/results/[^/]+\.json#(.+)$")


def lookup(raw: object, names: str) -> float | None:
    """The number at `a.b.0` in parsed JSON; None when there is none."""
    for name in names.split("."):
        if isinstance(raw, dict):
            raw = raw.get(name)
        elif isinstance(raw, list) and name.isdecimal() and int(name) < len(raw):
            raw = raw[int(name)]
        else:
            return None
    return None if isinstance(raw, bool) or not isinstance(raw, int | float) else float(raw)


def wrong_link(text: str, target: str, directory: Path) -> str | None:
    """What is wrong with a figure's link; None when the raw result says the same."""
    match = RAW.search(target)
    if match is None:
        return f"{text}: {target or 'an empty link'} names no figure in benchmarks/results/*.json#name"
    path = directory / target.partition("#")[0]
    if not path.is_file():
        return f"{text}: {path} does not exist"
    value = lookup(json.loads(path.read_text()), match[1])
    if value is None:
        return f"{text}: {path.name} holds no number at {match[1]}"
    shown = text.replace(",", "").replace(" ", "")
    if f"{value:.{len(shown.partition('.')[2])}f}" != shown:
        return f"{text}: {path.name} holds {value} at {match[1]}"
    return None


def complaints(page: str, directory: Path) -> list[str]:
    """Figures without a raw result, and links that do not hold. `directory` is where the page lies."""
    found = []
    page = FENCE.sub(lambda block: "\n" * block[0].count("\n"), page)
    for number, line in enumerate(page.splitlines(), start=1):
        if line.startswith("#"):
            continue
        bare = CODE.sub("", line)
        for text, target in LINK.findall(bare):
            if FIGURE.fullmatch(text):
                wrong = wrong_link(text, target, directory)
                found += [f"line {number}: {wrong}"] if wrong else []
            elif NUMBER.search(text):
                found.append(f"line {number}: {text!r} holds a figure: let the link's text be the figure alone")
        left = NUMBER.findall(LINK.sub("", bare))
        found += [f"line {number}: {figure} has no link to a raw result" for figure in left]
    return found


def main() -> int:
    """Check the page."""
    found = complaints(PAGE.read_text(), PAGE.parent)
    print("\n".join(f"{PAGE}: {complaint}" for complaint in found) or f"every figure in {PAGE} has its raw result")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
