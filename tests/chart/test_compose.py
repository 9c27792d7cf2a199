"""compose.yaml: one box in containers says what the chart says, and its profile `cpu` generates a song."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from scripts.chart_tools import ROOT
from tests.chart.podman import Podman, cpu_torch
from tests.chart.rendering import Render, find
from tests.processes import eventually
from tests.servers import free_ports

PROJECT = "serinette-compose-test"


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    return loaded


@pytest.mark.parametrize(("service", "part"), [("valkey", "-valkey"), ("store", "-seaweedfs")])
def test_queue_and_store_start_as_the_charts_do(
    services: dict[str, dict[str, Any]], render: Render, service: str, part: str
) -> None:
    container = find(render(), "StatefulSet", part).container
    wanted = [*container["command"], *container["args"]]
    given = shlex.split(services[service]["command"])
    if service == "valkey":  # whose password the network of the containers stands for
        assert given[-2:] == ["--protected-mode", "no"]
        given, wanted = given[:-2], wanted[: wanted.index("--requirepass")]
    assert given == wanted


def test_workers_with_and_without_a_gpu_differ_in_the_gpu_alone(services: dict[str, dict[str, Any]]) -> None:
    cpu, nvidia = services["worker"], services["worker-nvidia"]
    assert (cpu["profiles"], nvidia["profiles"]) == (["cpu"], ["nvidia"])
    apart = {"profiles", "command", "deploy"}
    assert {key: value for key, value in nvidia.items() if key not in apart} == {
        key: value for key, value in cpu.items() if key not in apart
    }
    assert nvidia["command"][:4] == ["python", "-m", "serinette.cli", "worker"]
    (device,) = nvidia["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The gateway of the profile `cpu`, with the images that podman built."""
    podman = Podman(tmp_path)
    podman.require()
    told = (
        subprocess.run(["podman-compose", "--help"], check=False, capture_output=True, text=True)
        if shutil.which("podman-compose")
        else None
    )
    if told is None or "--profile" not in told.stdout:
        pytest.skip("there is no podman-compose that knows profiles: pip install podman-compose")
    for target in ("gateway", "data"):
        podman.build("api/Dockerfile", f"localhost/serinette-{target}:0.1.0", "--target", target)
    podman.build("gpu_worker/Dockerfile", "localhost/serinette-worker:0.1.0", "--build-arg", "COMPILER=", *cpu_torch())
    port = free_ports(1)[0]

    def compose(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["podman-compose", "--project-name", PROJECT, "--profile", "cpu", *words],
            cwd=ROOT,
            env={**podman.environment, "SERINETTE_PORT": str(port)},
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )

    try:
        started = compose("up", "--detach", "--no-build")
        assert started.returncode == 0, started.stdout + started.stderr
        yield f"http://127.0.0.1:{port}"
    finally:
        compose("down", "--volumes", "--timeout", "5")


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_the_profile_cpu_generates_a_song(url: str) -> None:
    def ready() -> bool:
        with suppress(httpx.HTTPError, ValueError):
            return bool(httpx.get(f"{url}/v1/models", timeout=5).json()["models"])
        return False

    assert eventually(ready, 300)
    body = {"prompt": "glad piano", "duration_s": 3, "format": "wav"}
    job = httpx.post(f"{url}/v1/jobs", json=body, headers={"Prefer": "wait=50"}, timeout=60).json()
    assert eventually(lambda: httpx.get(f"{url}/v1/jobs/{job['id']}", timeout=10).json()["status"] == "succeeded", 120)
    assert httpx.get(f"{url}/v1/jobs/{job['id']}/audio", follow_redirects=True, timeout=30).content.startswith(b"RIFF")
