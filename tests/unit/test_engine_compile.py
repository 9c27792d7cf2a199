"""What is compiled is compiled before the first job, and sings what the eager model sings.

Graphs are made by dynamo, as always, and run by torch's own kernels: a compiler of C++ would take minutes, and is
torch's to test.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from gpu_worker.engine.ace_step import AceStepEngine
from gpu_worker.engine.base import SongRequest
from gpu_worker.engine.checkpoint import build
from gpu_worker.engine.loading import load
from gpu_worker.settings import WorkerSettings
from gpu_worker.wire import Samples
from serinette.job import Stage
from serinette.spec import GenerationSpec
from tests.unit.test_engine_adapters import adapter

# In fp32 another order of sums, as for songs in company.
TOLERANCE = 1e-5
Songs = list[tuple[str, float]]
SAME, OTHER = "a song", "another song that is longer"
# Alone and in company, of odd and even frames, with texts and lengths alike and not.
COMPILED: list[Songs] = [
    [(OTHER, 3.0)],
    [(SAME, 8.04)],
    [(SAME, 25.0)],
    [(SAME, 8.0)] * 3,
    [(SAME, 8.04), (OTHER, 8.04)],
    [(SAME, 8.0), (SAME, 7.6), (SAME, 8.0)],
    [(SAME, 8.04), (OTHER, 7.6), (SAME, 8.0), (OTHER, 7.0)],
]
SHORT: list[Songs] = [[(SAME, 1.0)], [(SAME, 1.04), (OTHER, 1.0)]]
# Dynamo reads the model line by line: seconds for a graph, and many times that on a machine that is busy.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    build(directory, turbo=True)
    for seed, name in enumerate(("warm", "dry")):
        adapter(directory, directory.parent / name, seed)
    return directory


@pytest.fixture(scope="module")
def compiled(model: Path) -> Iterator[AceStepEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        loras = {name: str(model.parent / name) for name in ("warm", "dry")}
        yield load(WorkerSettings(model=str(model), work_dir=model, threads=1, compile=True, max_batch=4, loras=loras))
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def sing(engine: AceStepEngine, songs: Songs, lora: str | None = None) -> list[Samples]:
    specs = [GenerationSpec(prompt=prompt, duration_s=length, steps=2, lora=lora) for prompt, length in songs]
    sung = engine.sing([SongRequest(spec, seed) for seed, spec in enumerate(specs)], quiet)
    return [song.samples for song in sung if song]


def quiet(stage: Stage, step: int | None, steps: int | None) -> frozenset[int]:
    return frozenset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_no_job_waits_for_a_compiler(compiled: AceStepEngine) -> None:
    before = graphs()
    assert before > 0
    for songs in COMPILED + SHORT:
        sing(compiled, songs)
    assert graphs() == before


def test_what_jobs_ask_for_was_compiled(compiled: AceStepEngine) -> None:
    with torch.compiler.set_stance("fail_on_recompile"):
        for songs in COMPILED:
            sing(compiled, songs)


def test_compiled_and_eager_sing_the_same(compiled: AceStepEngine, model: Path) -> None:
    eager = load(WorkerSettings(model=str(model), work_dir=model, threads=1))
    for songs in (COMPILED[1], COMPILED[-1], SHORT[0]):
        for one, other in zip(sing(compiled, songs), sing(eager, songs), strict=True):
            assert np.abs(one - other).max() <= TOLERANCE


def test_loras_interleaved_wait_for_no_compiler_either(compiled: AceStepEngine) -> None:
    before, plain = graphs(), sing(compiled, COMPILED[0])[0]
    first = [sing(compiled, COMPILED[0], lora)[0] for lora in ("warm", "dry", "warm")]
    assert graphs() == before
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    # Nor do those who asked for none fall back to the eager model, however many adapters came and went.
    with torch.compiler.set_stance("fail_on_recompile"):
        assert np.array_equal(sing(compiled, COMPILED[0])[0], plain)
        for songs in COMPILED:
            sing(compiled, songs)
