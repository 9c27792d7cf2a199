"""One model a pod: whatever the number of slots, a single process holds torch, and on a GPU a single one the device."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from tests.smoke import ended, submitted
from tests.stack import Stack


def holding(stack: Stack, words: str) -> list[str]:
    """Modules of the worker's processes that have a file of this name mapped or open, once it has generated."""
    assert ended(stack.url, submitted(stack.url, {"audio_duration": 2.0}))["status"] == "completed"
    worker = psutil.Process(stack.processes["worker"].pid)
    family = (worker, *worker.children(recursive=True))
    assert sum("gpu_worker.slot" in each.cmdline() for each in family) > 1
    found = []
    for each in family:
        maps = Path(f"/proc/{each.pid}/maps").read_text()
        links = [link.resolve() for link in Path(f"/proc/{each.pid}/fd").iterdir()]
        if words in maps or any(words in str(link) for link in links):
            found.append(each.cmdline()[-1])
    return found


def test_torch_is_in_the_engine_alone(stack: Stack) -> None:
    assert holding(stack, "libtorch") == ["gpu_worker.engine"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_one_context(stack: Stack) -> None:
    assert holding(stack, "/dev/nvidia") == ["gpu_worker.engine"]
