"""Links in our documents lead to a file of the repository and a heading in it, and a path that is cited exists.

Cited: in backticks in a document (`controller/sweeper.py`, or its tail), or below a top-level folder in a comment or
docstring.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:href|src)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ANCHOR = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")
NAME = r"[\w-]+(?:/[\w-]+)*/[\w.-]*\w\.(?:py|lua|md|yaml|tpl|js|mjs|toml|txt)\b|[\w-]+(?:/[\w-]+)+/"
QUOTED = re.compile(rf"`({NAME}|[\w-]+\.(?:py|lua|tpl))(?:::\w+)?`")
PATH = re.compile(rf"(?<![\w.@*/{{}}-])({NAME})(?![\w{{*<])")
DECISION = re.compile(r"decisions?[ /](\d{4})\b")
# Made by our commands, so in no checkout.
MADE = ("build/", "dist/", "tests/browser/node_modules/")


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


def targets(text: str) -> list[str]:
    """Where the links of a document lead, without those to other hosts; a heading follows `#`."""
    found = (unquote(one or other) for one, other in LINK.findall(CODE.sub("", FENCE.sub("", text))))
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def complaints(path: Path, root: Path) -> list[str]:
    """Links in one document that lead nowhere, or out of the repository."""
    found = []
    for target in targets(path.read_text()):
        file, _, name = target.partition("#")
        to = (path.parent / file).resolve() if file else path.resolve()
        if not to.is_relative_to(root.resolve()):
            found.append(f"{path}: {target} leads out of the repository")
        elif not to.exists():
            found.append(f"{path}: {target} does not exist")
        elif name and to.suffix == ".md" and name not in anchors(to.read_text()):
            found.append(f"{path}: {target}: no such heading")
    return found


def prose(path: Path, text: str) -> str:
    """Where a file cites others: comments and docstrings of Python, a document without its fences, else everything."""
    if path.suffix == ".md":
        return FENCE.sub("", text)
    if path.suffix != ".py":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = (ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, documented))
    return "\n".join([*(token.string for token in tokens if token.type == tokenize.COMMENT), *docstrings])


def paths(names: Iterable[str]) -> set[str]:
    """Files and their folders; a folder ends in `/`."""
    parts = [name.split("/") for name in names]
    folders = {"/".join(part[:to]) + "/" for part in parts for to in range(1, len(part))}
    return folders | {"/".join(part) for part in parts}


def missing(path: Path, text: str, there: set[str]) -> list[str]:
    """Cited paths that are not among `there`. A document may name the end of a path; what our commands make is fine."""
    words = prose(path, text)
    if path.suffix == ".md":
        cited = {name for name in QUOTED.findall(words) if not name.endswith("/") or f"{name.split('/')[0]}/" in there}
        lost = {name for name in cited - there if not any(whole.endswith("/" + name) for whole in there)}
    else:
        lost = {name for name in set(PATH.findall(words)) - there if f"{name.split('/')[0]}/" in there}
    numbers = {f"docs/decisions/{number}" for number in DECISION.findall(words)}
    lost |= {name for name in numbers if not any(whole.startswith(f"{name}-") for whole in there)}
    return [f"{path}: cites {name}, which does not exist" for name in sorted(lost) if not name.startswith(MADE)]


def main() -> int:
    """Check every document, and every file that may cite another, that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    names = [name for name in listed if Path(name).is_file()]
    documents = [Path(name) for name in names if name.endswith(".md")]
    there = paths(names)
    found = [complaint for path in documents for complaint in complaints(path, Path.cwd())]
    for name in names:
        if name.endswith((".md", ".py", ".lua", ".yaml", ".tpl", ".toml", "Dockerfile")):
            found += missing(Path(name), Path(name).read_text(), there)
    print("\n".join(found) or f"the links of {len(documents)} documents hold, and what is cited exists")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
