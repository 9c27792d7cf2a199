"""What is compiled is compiled before the first job, and generates what the eager model generates.

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

from gpu_worker.engine.ace_step import loading
from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.interface import SongRequest
from gpu_worker.wire import Samples
from serinette.spec import GenerationSpec
from tests.tiny_checkpoint import build, engine_of, unobserved
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
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with two blocks in its decoder in place of five, each of which dynamo would read."""
    build(directory := tmp_path_factory.mktemp("shallow"), turbo=True, strides=(48, 40))
    return directory


@pytest.fixture(scope="module")
def loras(shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("loras")
    return {name: str(adapter(shallow, root / name, seed)) for seed, name in enumerate(("warm", "dry"))}


@pytest.fixture(scope="module")
def compiled(shallow: Path, loras: dict[str, str]) -> Iterator[AceStepEngine]:
    # oneDNN writes a kernel for each length of the long strides of `shallow`: seconds apiece, most of the time here.
    with pytest.MonkeyPatch.context() as patch, torch.backends.mkldnn.flags(enabled=False):
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        yield engine_of(shallow, compile=True, max_batch=4, loras=loras)
    torch.compiler.set_stance("default")
    torch.compiler.reset()


def generate(engine: AceStepEngine, songs: Songs, lora: str | None = None) -> list[Samples]:
    specs = [GenerationSpec(prompt=prompt, duration_s=length, steps=2, lora=lora) for prompt, length in songs]
    made = engine.generate_all([SongRequest(spec, seed) for seed, spec in enumerate(specs)], unobserved)
    return [song.samples for song in made if song]


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_all_blocks_share_their_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many, and as large, for six blocks as for four: a graph of the whole forward would grow with them."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(loading, "warm_up", lambda *_: None)
    made, operators = [], []
    for blocks in (4, 6):
        torch.compiler.reset()
        build(tmp_path / str(blocks), turbo=True, strides=(48, 40), blocks=blocks)
        engine = engine_of(tmp_path / str(blocks), compile=True)
        engine._pipe.vae.decoder.forward = lambda given: torch.ones(len(given), 2, 1920 * given.shape[-1])
        before = graphs(), int(counters["stats"]["calls_captured"])
        generate(engine, SHORT[0])
        made.append(graphs() - before[0])
        operators.append(int(counters["stats"]["calls_captured"]) - before[1])
    torch.compiler.reset()
    assert made[0] == made[1] > 0
    assert operators[0] == operators[1] > 0


def test_no_job_waits_for_a_compiler(compiled: AceStepEngine) -> None:
    before = graphs()
    assert before > 0
    with torch.compiler.set_stance("fail_on_recompile"):  # what jobs ask for was compiled
        for songs in COMPILED:
            generate(compiled, songs)
    for songs in SHORT:  # or is run eagerly
        generate(compiled, songs)
    assert graphs() == before


def test_compiled_and_eager_generate_the_same(compiled: AceStepEngine, shallow: Path) -> None:
    eager = engine_of(shallow)
    for songs in (COMPILED[1], COMPILED[-1], SHORT[0]):
        for one, other in zip(generate(compiled, songs), generate(eager, songs), strict=True):
            assert np.abs(one - other).max() <= TOLERANCE


def test_loras_interleaved_wait_for_no_compiler_either(compiled: AceStepEngine) -> None:
    before, plain = graphs(), generate(compiled, COMPILED[0])[0]
    first = [generate(compiled, COMPILED[0], lora)[0] for lora in ("warm", "dry", "warm")]
    assert graphs() == before
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    # Nor do those who asked for none fall back to the eager model, however many adapters came and went.
    with torch.compiler.set_stance("fail_on_recompile"):
        assert np.array_equal(generate(compiled, COMPILED[0])[0], plain)
        for songs in COMPILED[1:]:
            generate(compiled, songs)
