"""Driver and torch: what they must be, and what they are on this very machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata

from serinette.doctor.findings import Finding, bad, ok, unknown

# CUDA of the torch that workers are built with (gpu_worker/Dockerfile), and the oldest driver of each CUDA
# (CUDA Toolkit release notes, table of minor-version compatibility).
TORCH_CUDA = 13
LEAST_DRIVER = {12: 525, 13: 580}


@dataclass(frozen=True, slots=True)
class MachineSeen:
    """Its GPUs by nvidia-smi, and the torch that is installed, which is not loaded for that."""

    gpus: tuple[tuple[str, str], ...] = ()  # name, driver
    error: str = ""
    torch: str | None = None
    cuda: int | None = None  # that torch was built for; None: for CPUs


def look_at_machine() -> MachineSeen:
    """Ask nvidia-smi and the installed packages."""
    torch = _version("torch")
    cuda = _cuda(torch)
    if (smi := shutil.which("nvidia-smi")) is None:
        return MachineSeen(torch=torch, cuda=cuda)
    command = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return MachineSeen(error=str(error), torch=torch, cuda=cuda)
    if done.returncode:
        return MachineSeen(error=(done.stdout + done.stderr).strip()[:300], torch=torch, cuda=cuda)
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.count(", ") == 1]
    return MachineSeen(tuple((name, driver) for name, driver in rows), "", torch, cuda)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cuda(torch: str | None) -> int | None:
    """From `2.13.0+cu130`, or from the CUDA packages that PyPI's torch comes with."""
    if torch is None or "+cpu" in torch:
        return None
    if found := re.search(r"\+cu(\d+)\d$", torch):
        return int(found[1])
    for package in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"):
        if version := _version(package):
            return int(version.split(".")[0])
    return None


def judge_machine(seen: MachineSeen) -> list[Finding]:
    """The local GPU and its driver against the local torch."""
    if seen.error:
        return [bad("gpu", "this machine", f"nvidia-smi fails: {seen.error}", "install or reload the driver")]
    if not seen.gpus:
        return [ok("gpu", "this machine", "no NVIDIA GPU here; songs are generated on the CPU")]
    names = ", ".join(sorted({name for name, _ in seen.gpus}))
    if seen.torch is None:
        return [unknown("gpu", "this machine", f"{names}; no torch is installed here", "pip install 'serinette[gpu]'")]
    if seen.cuda is None:
        remedy = "install torch from PyPI, or from a CUDA index, in place of the CPU build"
        return [bad("gpu", "this machine", f"{names}, but torch {seen.torch} is built for CPUs", remedy)]
    least, driver = LEAST_DRIVER.get(seen.cuda, 0), seen.gpus[0][1]
    if int(driver.split(".")[0]) < least:
        message = f"{names} with driver {driver}; torch {seen.torch} is built for CUDA {seen.cuda}, which needs {least}"
        return [bad("gpu", "this machine", message, "renew the driver, or install a torch for an older CUDA")]
    return [ok("gpu", "this machine", f"{names}, driver {driver}, enough for torch {seen.torch}")]
