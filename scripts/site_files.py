"""A hook of mkdocs: which files make the site, and that it needs no other host."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from scripts.check_links import targets

ROOT = Path(__file__).parents[1]
# What a browser loads or connects to by itself; an `<a>` leads on only when it is followed.
LOADING = {"src", "srcset", "data", "poster", "action"}
FOREIGN = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
STYLE = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Every document that git knows or would take, and every file that one of them links to, at its own place."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    pages = {ROOT / name for name in listed if (ROOT / name).is_file()}
    targeted = ((page.parent / to.partition("#")[0]).resolve() for page in pages for to in targets(page.read_text()))
    linked = {path for path in targeted if path.is_file() and path.is_relative_to(ROOT)}
    for path in sorted(pages | linked):
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads anything from another host."""
    site = Path(config.site_dir)
    found = [
        f"{path.relative_to(site)} loads {address}"
        for kind, addresses in ((".html", loaded), (".css", STYLE.findall))
        for path in sorted(site.rglob(f"*{kind}"))
        for address in addresses(path.read_text())
    ]
    if found:
        raise PluginError("\n".join(found))


class _Loaded(HTMLParser):
    """Collects the addresses of other hosts that a browser follows by itself; those of `<a>` wait for a reader."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = LOADING | ({"href"} if tag != "a" else set())
        self.found += [value for name, value in attrs if name in names and value and FOREIGN.match(value)]


def loaded(page: str) -> list[str]:
    """What a page of HTML loads from other hosts."""
    parser = _Loaded()
    parser.feed(page)
    return parser.found + STYLE.findall(page)
