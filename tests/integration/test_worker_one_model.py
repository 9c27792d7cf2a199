"""One model a pod: whatever the number of slots, a single process holds torch, and on a GPU a single one the device."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from tests import servers
from tests.pod import Pod, pod

SLOTS = 3


def holding(process: subprocess.Popen[bytes], words: str) -> list[str]:
    """Command lines of the pod's processes that have a file of this name mapped or open."""
    whole = psutil.Process(process.pid)
    found = []
    for each in (whole, *whole.children(recursive=True)):
        maps = Path(f"/proc/{each.pid}/maps").read_text()
        links = [link.resolve() for link in Path(f"/proc/{each.pid}/fd").iterdir()]
        if words in maps or any(words in str(link) for link in links):
            found.append(" ".join(each.cmdline()))
    return found


def start_and_generate(made: Pod) -> subprocess.Popen[bytes]:
    process = made.start(engine_module="gpu_worker.engine", slots=SLOTS, threads=1)
    made.wait_stage(timeout_s=180)
    made.wait_over(made.submit("jazz"), timeout_s=180)
    return process


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Pod]:
    with servers.valkey(tmp_path / "valkey") as server, pod(tmp_path, server.connection_url) as made:
        yield made


def test_torch_is_in_the_engine_alone(made: Pod) -> None:
    assert [line.split()[-1] for line in holding(start_and_generate(made), "libtorch")] == ["gpu_worker.engine"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_one_context(made: Pod) -> None:
    assert [line.split()[-1] for line in holding(start_and_generate(made), "/dev/nvidia")] == ["gpu_worker.engine"]
