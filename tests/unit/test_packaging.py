"""Everything that lies in the packages goes into the wheel."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("serinette", "api", "controller", "gpu_worker")
# What images are built from has no place in a wheel.
IMAGES_OWN = ("Dockerfile", "requirements*.txt")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def files(package: str) -> list[Path]:
    found = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in found if not any(fnmatch(path.name, pattern) for pattern in IMAGES_OWN)]


def packed(path: Path) -> bool:
    """Whether setuptools takes it: modules of packages, and what `package-data` names."""
    package = path.parent.relative_to(ROOT)
    if not (path.parent / "__init__.py").is_file():
        return False
    if path.suffix == ".py":
        return True
    data: dict[str, list[str]] = SETUPTOOLS["package-data"]
    patterns = data.get(".".join(package.parts), []) + data.get("*", [])
    return any(fnmatch(path.name, pattern) for pattern in patterns)


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_left_out_of_the_wheel(package: str) -> None:
    assert {package, f"{package}.*"} <= set(SETUPTOOLS["packages"]["find"]["include"])
    assert [str(path) for path in files(package) if not packed(path)] == []
    assert (ROOT / package / "py.typed") in files(package)


def test_what_no_pattern_names_is_noticed() -> None:
    assert not packed(ROOT / "serinette/notes.txt")
    assert not packed(ROOT / "docs/benchmarks.md")
