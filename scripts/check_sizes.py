"""Files of at most 500 lines: one that passes them is asking to be two. Complexity is ruff's to bound, not length's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

FILE_LINES = 500


def complaints(measured: Mapping[str, int]) -> list[str]:
    """What is too long. `measured`: lines by file."""
    return [
        f"{name}: {lines} lines, at most {FILE_LINES}: is it really one thing?"
        for name, lines in measured.items()
        if lines > FILE_LINES
    ]


def main() -> int:
    """Check every source file that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.lua", "*.js", "*.css"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    measured = {name: len(Path(name).read_text().splitlines()) for name in sorted(set(names)) if Path(name).is_file()}
    found = complaints(measured)
    print("\n".join(found) or f"{len(names)} files are of a size to be read")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
