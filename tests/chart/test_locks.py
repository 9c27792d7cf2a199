"""What the images install is pinned, hashed, and enough for what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from scripts.chart_tools import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# In a layer of its own.
TORCHS = {"torch"}


def wanted(extra: str) -> list[Requirement]:
    """The direct requirements of an extra and of those that it names."""
    found = [Requirement(text) for text in PROJECT["optional-dependencies"][extra]]
    nested = [inner for one in found if one.name == PROJECT["name"] for name in one.extras for inner in wanted(name)]
    others = [one for one in found if one.name != PROJECT["name"]]
    return [*nested, *others, *(inner for one in others for inner in drawn_in(one))]


def drawn_in(requirement: Requirement) -> Iterator[Requirement]:
    """What the extras of a requirement bring, as `redis[hiredis]` does."""
    for extra in requirement.extras:
        for text in metadata.requires(requirement.name) or ():
            inner = Requirement(text)
            if inner.marker and "extra" in text and inner.marker.evaluate({"extra": extra}):
                yield inner


def pinned(path: str) -> dict[str, Version]:
    text = (ROOT / path).read_text()
    return {match[1]: Version(match[2]) for match in re.finditer(r"^([a-z0-9.-]+)==(\S+)", text, re.MULTILINE)}


@pytest.mark.parametrize(
    ("path", "extras"),
    [
        ("api/requirements.txt", ("gateway", "cluster", "cli", "otel", "init")),
        ("gpu_worker/requirements.txt", ("worker", "otel", "init")),
    ],
)
def test_a_lock_holds_what_the_project_asks_for(path: str, extras: tuple[str, ...]) -> None:
    pins = pinned(path)
    base = [Requirement(text) for text in PROJECT["dependencies"]]
    asked = [*base, *(one for extra in extras for one in wanted(extra))]
    missing = [
        str(one)
        for one in asked
        if one.name not in TORCHS and (one.name not in pins or not one.specifier.contains(pins[one.name]))
    ]
    assert missing == [], "run `make lock`"


@pytest.mark.parametrize("path", ["api/requirements.txt", "api/requirements-data.txt", "gpu_worker/requirements.txt"])
def test_every_pin_has_a_hash_and_no_index_is_named(path: str) -> None:
    text = (ROOT / path).read_text()
    entries = [entry for entry in re.split(r"^(?=[a-z])", text, flags=re.MULTILINE) if "==" in entry]
    assert entries and all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text and "--index" not in text


def test_the_workers_torch_is_the_projects() -> None:
    dockerfile = (ROOT / "gpu_worker/Dockerfile").read_text()
    version = re.search(r'^ARG TORCH="torch==([^\s"]+)', dockerfile, re.MULTILINE)
    assert version
    (torch,) = (one for one in wanted("worker") if one.name == "torch")
    assert torch.specifier.contains(version[1])
    assert f"torch=={version[1]}" in (ROOT / "Makefile").read_text()
