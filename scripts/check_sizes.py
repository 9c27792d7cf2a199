"""Files of at most 500 lines: one that passes them is asking to be two. Complexity is ruff's to bound, not length's.

Exceptions stand in scripts/sizes.toml, each with its reason and its own bound.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

FILE_LINES = 500


def complaints(measured: Mapping[str, int], allowed: Mapping[str, Mapping[str, object]]) -> list[str]:
    """What is too long, and which exceptions are idle, wrong or without a reason. `measured`: lines by file."""
    found = []
    for name, exception in allowed.items():
        if not isinstance(exception.get("lines"), int) or not exception.get("why"):
            found.append(f"{name}: an exception needs `lines` (a number) and `why`")
        elif measured.get(name, 0) <= FILE_LINES:
            found.append(f"{name}: needs no exception, take it out of scripts/sizes.toml")
    for name, lines in measured.items():
        bound = allowed.get(name, {}).get("lines")
        most = bound if isinstance(bound, int) else FILE_LINES
        if lines > most:
            found.append(f"{name}: {lines} lines, at most {most}: is it really one thing?")
    return found


def main() -> int:
    """Check every source file that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.lua", "*.js", "*.css"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    measured = {name: len(Path(name).read_text().splitlines()) for name in sorted(set(names)) if Path(name).is_file()}
    found = complaints(measured, tomllib.loads(Path("scripts/sizes.toml").read_text()))
    print("\n".join(found) or f"{len(names)} files are of a size to be read")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
