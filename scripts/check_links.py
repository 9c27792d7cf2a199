"""Links inside our documents lead somewhere: to a file of the repository, and to a heading in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:href|src)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")


def anchors(text: str) -> set[str]:
    """Names that `#name` may lead to, made from headings as GitHub makes them."""
    found: set[str] = set(ANCHOR.findall(text))
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        name, count = slug, 0
        while name in found:
            count += 1
            name = f"{slug}-{count}"
        found.add(name)
    return found


def complaints(path: Path, root: Path) -> list[str]:
    """Links in one document that lead nowhere, or out of the repository."""
    told = []
    text = CODE.sub("", FENCE.sub("", path.read_text()))
    for target in (unquote(one or other) for one, other in LINK.findall(text)):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file, _, name = target.partition("#")
        to = (path.parent / file).resolve() if file else path.resolve()
        if not to.is_relative_to(root.resolve()):
            told.append(f"{path}: {target} leads out of the repository")
        elif not to.exists():
            told.append(f"{path}: {target} does not exist")
        elif name and to.suffix == ".md" and name not in anchors(to.read_text()):
            told.append(f"{path}: {target}: no such heading")
    return told


def main() -> int:
    """Check every document that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    root = Path.cwd()
    told = [complaint for name in names if (root / name).is_file() for complaint in complaints(Path(name), root)]
    print("\n".join(told) or f"the links of {len(names)} documents hold")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
