"""Documents: what their blocks call exists, the Japanese quickstart keeps step, and nothing unpublished is promised."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from serinette.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [
    str(path.relative_to(ROOT)) for places in ("*.md", "docs/*.md", "[cek]*/**/*.md") for path in ROOT.glob(places)
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
ASSIGNMENT = re.compile(r"[A-Z_]+=")


def shell_blocks(text: str) -> list[str]:
    """Those that a test runs, and those called `text`, which only a person does."""
    return [block for language, block in FENCED.findall(text) if language in {"bash", "text"}]


def commands(block: str) -> Iterator[list[str]]:
    """Each command of a block of shell, as words, without assignments before it."""
    lines = shlex.shlex(block.replace("\\\n", " ").replace("\n", " \n;"), posix=True, punctuation_chars=";|&()")
    lines.whitespace_split = True
    command: list[str] = []
    for word in [*lines, ";"]:
        if set(word) <= set(";|&()"):
            yield command
            command = []
        elif command or not (ASSIGNMENT.match(word) or word in {"do", "then"}):
            command.append(word)


def complaint(command: list[str]) -> str | None:
    """Why a command of ours is none: no such command, option or target. None for other programs'."""
    match command:
        case ["make", *words]:
            unknown = [word for word in words if "=" not in word and word not in TARGETS]
            return f"no such target: {unknown}" if unknown else None
        case ["serinette" | ".venv/bin/serinette", *words]:
            return _refusal(words)
    return None


def _refusal(words: list[str]) -> str | None:
    found = typer.main.get_command(app)
    while words and words[0] in getattr(found, "commands", {}):
        found, words = found.commands[words[0]], words[1:]  # type: ignore[attr-defined]  # click's groups have them
    if hasattr(found, "commands"):
        return f"no such command: {words}"
    known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in itertools.takewhile("--".__ne__, words) if re.match(r"--?[a-z]", word)}
    unknown = given - known
    return f"no such option: {unknown}" if unknown else None


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_exist(page: str) -> None:
    blocks = shell_blocks((ROOT / page).read_text())
    found = [problem for block in blocks for command in commands(block) if (problem := complaint(command))]
    assert not found


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ('A=b serinette submit "x" \\\n  -d 5 -o - > a.mp3 # that\'s all\nls', None),
        ("ID=$(serinette submit a --shout)", "--shout"),
        ("for a in b; do serinette sing a; done", "no such command"),
        ("make demo PORT=1 && make tea", "no such target: ['tea']"),
        ("serinette batch", "no such command"),
        ("helm install serinette oci://sing", None),
    ],
)
def test_a_command_that_does_not_exist_is_found(block: str, problem: str | None) -> None:
    found = [each for command in commands(block) if (each := complaint(command))]
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


def test_the_japanese_quickstart_shows_the_commands_of_the_english_one() -> None:
    sections = dict(part.split("\n", 1) for part in (ROOT / "README.md").read_text().split("\n## ")[1:])
    english, japanese = (
        [re.sub(r' *#.*|"[^"]*"', "", block) for block in shell_blocks(sections[title])]
        for title in ("Try it", "日本語クイックスタート")
    )
    assert english
    assert japanese[: len(english)] == english


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_from_when_on_a_package_is_published(page: str) -> None:
    lines = (ROOT / page).read_text().splitlines()
    promises = [line for line in lines if re.search(r"pip install '?serinette\b", line)]
    assert all("from the first release on" in line for line in promises), promises
