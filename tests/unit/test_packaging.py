"""The wheel, built and installed in an environment of its own; and what an editable install adds to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pydantic
import pytest

ROOT = Path(__file__).parents[2]
SERVER = ("api", "controller", "gpu_worker")
LARGEST_BYTES = 500_000
PACKAGES_OF_THE_SERVER = {"redis", "rq", "obstore", "av", "numpy", "pydantic_settings", "prometheus_client", "fastapi"}
# The packages of this environment. Their own .pth files are not read from there, so that Serinette is not among them.
DEPENDENCIES = Path(pydantic.__file__).parents[1]


class Installed:
    """An environment that holds what Serinette and its build need, and nothing of this checkout's path."""

    def __init__(self, directory: Path) -> None:
        venv.create(directory, with_pip=False, symlinks=True)
        self.python = directory / "bin" / "python"
        (site,) = directory.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")
        self._directory = directory

    def pip(self, *command: str, cwd: Path) -> None:
        """Run pip for this environment, without a network: setuptools is among the dependencies."""
        words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(self.python), *command]
        words += ["--no-index", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(words, cwd=cwd, check=False, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of its programs, away from the checkout."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._directory), "COLUMNS": "200"}
        return subprocess.run(
            [self._directory / "bin" / command[0], *command[1:]],
            cwd=self._directory,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def found(self, *modules: str) -> list[bool]:
        code = "import importlib.util, sys; print([bool(importlib.util.find_spec(name)) for name in sys.argv[1:]])"
        return [word == "True" for word in self.run("python", "-c", code, *modules).stdout.strip("[]\n").split(", ")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build sees of this repository, where it leaves nothing behind."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("serinette", *SERVER):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def wheel(environment: Installed, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    environment.pip("wheel", "--wheel-dir", str(out), ".", cwd=checkout)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(environment: Installed, wheel: Path) -> Installed:
    environment.pip("install", str(wheel), cwd=wheel.parent)
    return environment


def test_the_wheel_holds_all_of_serinette_and_nothing_else(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path.relative_to(checkout).as_posix() for path in (checkout / "serinette").rglob("*") if path.is_file()}
    assert packed == files
    assert "serinette/py.typed" in packed
    assert wheel.stat().st_size < LARGEST_BYTES


def test_the_client_and_the_command_line_work_from_the_wheel(installed: Installed) -> None:
    assert installed.found("serinette.client", *SERVER, "tools") == [True, False, False, False, False]
    code = "import serinette; print(serinette.__file__, serinette.Client, serinette.AsyncClient)"
    done = installed.run("python", "-c", code)
    assert str(installed.python.parents[1]) in done.stdout, done.stderr
    assert installed.run("serinette", "--version").stdout == f"serinette {version('serinette')}\n"
    assert "no Serinette answers at" in installed.run("serinette", "queue", "--server", "http://127.0.0.1:9").stderr


@pytest.mark.parametrize(
    ("module", "more"),
    [("serinette, serinette.client; serinette.Client", {"typer"}), ("serinette.cli.app", set())],
)
def test_neither_needs_a_package_of_the_server(installed: Installed, module: str, more: set[str]) -> None:
    """This environment holds those packages too: that none is imported is asked of what was imported."""
    done = installed.run("python", "-c", f"import sys, {module}; print(*sys.modules)")
    assert "serinette" in done.stdout.split(), done.stderr
    assert not (PACKAGES_OF_THE_SERVER | more) & set(done.stdout.split())


@pytest.mark.parametrize("command", [("up",), ("demo",), ("convert", "here", "there")])
def test_what_needs_the_server_says_where_it_is_to_be_had(installed: Installed, command: tuple[str, ...]) -> None:
    done = installed.run("serinette", *command)
    assert done.returncode == 1
    assert "this installation holds the client and the command line alone" in done.stderr
    assert "make up" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_editable_install_holds_the_server_too(checkout: Path, tmp_path: Path) -> None:
    environment = Installed(tmp_path)
    environment.pip("install", "--editable", ".", cwd=checkout)
    assert environment.found("serinette.client", *SERVER) == [True] * 4
