"""Images and containers without a registry, a daemon or a cluster: podman, on a base of Debian packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.chart_tools import ROOT

BASE = "localhost/serinette-standin:bookworm"
# In virtual machines with old control groups, and in containers, podman's own defaults do not start.
_CONFIGURATION = """
[containers]
default_ulimits=["nofile=16384:16384","nproc=8192:8192"]
[engine]
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
"""
_CERTIFICATES = Path("/etc/ssl/certs")
# Base, torch and all that the locks pin take a quarter of an hour on two cores, which CI does not have: it runs these
# tests where an earlier run left its layers, and elsewhere when it is asked to.
ASKED = "SERINETTE_TEST_IMAGES"


def may_start_from_nothing(environment: Mapping[str, str]) -> bool:
    """Whether an image may be built here that no earlier run has built."""
    return not environment.get("CI") or environment.get(ASKED) == "1"


class Podman:
    """Commands of podman, with what it needs to run here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "containers.conf").write_text(_CONFIGURATION)
        self.environment = {**os.environ, "CONTAINERS_CONF": str(directory / "containers.conf")}

    def __call__(self, *arguments: str | Path, timeout_s: float = 120) -> str:
        done = subprocess.run(
            ["podman", *map(str, arguments)],
            env=self.environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"podman {arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def require(self) -> None:
        """Skip unless containers run here."""
        if shutil.which("podman") is None:
            pytest.skip("podman is not installed: apt-get install podman runc netavark aardvark-dns iptables catatonit")
        if not self.exists(BASE):
            self._ask_for(BASE)
            self._make_base()
        confined = ["--rm", "--network", "none", "--read-only", "--cap-drop", "all", "--user", "10001:10001"]
        command = ["podman", "run", *confined, BASE, "true"]
        ran = subprocess.run(command, env=self.environment, check=False, capture_output=True, text=True, timeout=300)
        if ran.returncode:
            pytest.skip(f"podman starts no container here: {ran.stderr[-300:]}")

    def _ask_for(self, image: str) -> None:
        if not may_start_from_nothing(self.environment):
            pytest.skip(f"{image} is not here, and CI builds images from nothing only when asked: {ASKED}=1")

    def _make_base(self) -> None:
        if shutil.which("mmdebstrap") is None:
            pytest.skip(
                "mmdebstrap, which makes a stand-in for python:slim, is not installed: apt-get install mmdebstrap"
            )
        archive = self.directory / "base.tar"
        packages = "ca-certificates,python3,python3-venv"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", str(archive)]
        made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
        if made.returncode:
            pytest.skip(f"mmdebstrap makes no base image here: {made.stderr[-300:]}")
        self("import", archive, BASE, timeout_s=300)
        archive.unlink()

    def exists(self, image: str) -> bool:
        command = ["podman", "image", "exists", image]
        return subprocess.run(command, env=self.environment, check=False).returncode == 0

    def log(self, container: str) -> str:
        """The end of what a container wrote, on either stream."""
        command = ["podman", "logs", "--tail", "30", container]
        done = subprocess.run(command, env=self.environment, check=False, capture_output=True, text=True)
        return f"--- {container}\n{done.stdout}{done.stderr}"

    def build(self, dockerfile: str, tag: str, *arguments: str, timeout_s: float = 1200) -> str:
        """Build one of our images on the stand-in, with this machine's certificates and package settings."""
        if not self.exists(tag):
            self._ask_for(tag)
        mounts = ["--volume", f"{_CERTIFICATES}:{_CERTIFICATES}:ro"]
        settings = f"[global]\ncert = {os.environ.get('PIP_CERT') or _CERTIFICATES / 'ca-certificates.crt'}\n"
        for links in wheel_directories():
            mounts += ["--volume", f"{links}:{links}:ro"]
            settings += f"find-links = {links}\n"
        (self.directory / "pip.conf").write_text(settings)
        mounts += ["--volume", f"{self.directory / 'pip.conf'}:/etc/pip.conf:ro"]
        base = ["--build-arg", f"PYTHON_IMAGE={BASE}"]
        # Left to itself podman asks a terminal for what it cannot find.
        build = ["build", "--network", "host", "--pull=never", *mounts, *base, *arguments]
        return self(*build, "--file", ROOT / dockerfile, "--tag", tag, ROOT, timeout_s=timeout_s)


def wheel_directories() -> list[Path]:
    """Where this machine's pip finds wheels on disk."""
    listed = os.environ.get("PIP_FIND_LINKS", "").split()
    return [Path(name) for name in listed if Path(name).is_dir()]


def cpu_torch() -> list[str]:
    """Build arguments for a torch without CUDA; skips where there is none: gigabytes would be fetched for nothing."""
    if index := os.environ.get("SERINETTE_TORCH_INDEX"):
        return ["--build-arg", "TORCH=torch==2.13.0", "--build-arg", f"TORCH_INDEX={index}"]
    if any(directory.glob("torch-*+cpu-*.whl") for directory in wheel_directories()):
        return ["--build-arg", "TORCH=torch==2.13.0"]
    pytest.skip("no CPU build of torch: set SERINETTE_TORCH_INDEX to an index that has one")
