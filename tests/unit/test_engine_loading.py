"""Where a checkpoint comes from, whether it is whole, and what an operator reads when it is not."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_worker.engine import loading
from gpu_worker.engine.ace_step.footprint import need_of
from gpu_worker.engine.ace_step.loading import warm_up
from gpu_worker.engine.checkpoints.downloading import publish
from gpu_worker.engine.checkpoints.locating import bundled_checkpoint, locate, revision_of
from gpu_worker.engine.interface import Checkpoint, ModelFamily, SongRequest, StepObserver
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError
from serinette.spec import GenerationSpec
from tests.engines import MODEL, SineEngine
from tests.tiny_checkpoint import build, unobserved


@pytest.fixture
def copy(tiny_turbo: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(tiny_turbo, tmp_path / "copy"))


def settings(directory: Path, **given: Any) -> WorkerSettings:
    return WorkerSettings(work_dir=directory, **given)


def test_the_bundled_one_is_unpacked_once(tmp_path: Path) -> None:
    first = bundled_checkpoint(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")}
    assert bundled_checkpoint(tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")} == before


def test_two_tiny_checkpoints_are_the_same_to_the_byte(tiny_turbo: Path, tiny_base: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    build(tmp_path / "again", turbo=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert revision_of(tmp_path / "again") == revision_of(tiny_turbo)
    assert revision_of(tiny_base) != revision_of(tiny_turbo)


class TestLocate:
    def test_a_directory_by_path_or_url(self, copy: Path, tmp_path: Path) -> None:
        for model in (str(copy), f"file://{copy}"):
            assert locate(settings(tmp_path, model=model)) == Checkpoint(copy, "copy", revision_of(copy))

    def test_the_name_is_the_operators_if_given(self, copy: Path, tmp_path: Path) -> None:
        engine = loading.load(settings(tmp_path, model=str(copy), model_name="mine", threads=1))
        assert engine.model.name == "mine"
        assert engine.device.startswith("cpu") or torch.cuda.is_available()

    @pytest.mark.parametrize("model", ["/no/such/directory", "nonsense", "http://example.org/model", "s3://bucket"])
    def test_a_missing_model_is_named_with_what_is_allowed(self, tmp_path: Path, model: str) -> None:
        with pytest.raises(ConfigurationError, match=model):
            locate(settings(tmp_path, model=model))

    def test_a_hub_that_is_away_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ConfigurationError, match="model nobody/has-this@main: the hub does not give it"):
            locate(settings(tmp_path, model="nobody/has-this@main"))


class TestWhole:
    def test_a_whole_one_passes(self, copy: Path) -> None:
        loading.family_of(copy)

    def test_a_cut_file_is_named(self, copy: Path) -> None:
        weights = copy / "transformer/diffusion_pytorch_model.safetensors"
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size - 100)
        with pytest.raises(ConfigurationError, match=f"{weights}: is damaged or cut off"):
            loading.load(settings(copy, model=str(copy)))

    def test_another_pipeline_is_named(self, copy: Path) -> None:
        (copy / "model_index.json").write_text(json.dumps({"_class_name": "StableAudioPipeline"}))
        with pytest.raises(ConfigurationError, match="names a StableAudioPipeline"):
            loading.family_of(copy)

    @pytest.mark.parametrize("text", [None, "{", "[]"])
    def test_no_pipeline_at_all(self, copy: Path, text: str | None) -> None:
        (copy / "model_index.json").unlink()
        if text:
            (copy / "model_index.json").write_text(text)
        with pytest.raises(ConfigurationError, match="no checkpoint in diffusers' layout"):
            loading.family_of(copy)

    def test_pickled_weights_are_never_opened(self, copy: Path) -> None:
        weights = copy / "vae/diffusion_pytorch_model.safetensors"
        weights.unlink()
        torch.save({"harm": 1}, weights.with_suffix(".bin"))
        with pytest.raises(ConfigurationError, match="cannot be loaded"):
            loading.load(settings(copy, model=str(copy)))


class TestDevice:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"device": "tpu"}, "must be auto, cpu, cuda"),
            ({"device": "meta"}, "must be auto, cpu, cuda"),
            ({"device": "cuda:99"}, "finds"),
            ({"device": "cpu", "cpu_offload": True}, "cpu_offload: needs a CUDA device"),
        ],
    )
    def test_what_cannot_be_is_named(self, tmp_path: Path, given: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            loading.device_of(settings(tmp_path, **given))

    def test_auto_finds_one(self, tmp_path: Path) -> None:
        expected = "cuda" if torch.cuda.is_available() else "cpu"
        assert loading.device_of(settings(tmp_path)).type == expected


class TestRevision:
    def test_it_hangs_on_names_and_bytes_alone(self, copy: Path) -> None:
        first = revision_of(copy)
        (copy / ".hidden").write_text("x")
        (copy / "model_index.json").touch()
        assert revision_of(copy) == first
        (copy / "vae/config.json").rename(copy / "vae/other.json")
        assert revision_of(copy) != first

    def test_a_changed_byte_is_seen_beside_the_cache(self, copy: Path) -> None:
        first = revision_of(copy)
        assert (copy / ".serinette-revision.json").exists()
        with (copy / "transformer/diffusion_pytorch_model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
        assert revision_of(copy) != first


class TestPublish:
    def test_of_many_one_builds(self, tmp_path: Path) -> None:
        built = []

        def build_slowly(directory: Path) -> None:
            built.append(threading.get_ident())
            (directory / "half").touch()
            time.sleep(0.1)
            (directory / "whole").touch()

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: publish(tmp_path / "it", build_slowly), range(8)))
        assert found == [tmp_path / "it"] * 8
        assert len(built) == 1
        assert sorted(path.name for path in (tmp_path / "it").iterdir()) == ["half", "whole"]

    def test_a_build_that_fails_leaves_nothing_and_the_next_starts_anew(self, tmp_path: Path) -> None:
        def fail(directory: Path) -> None:
            (directory / "half").touch()
            raise ConfigurationError("no")

        with pytest.raises(ConfigurationError):
            publish(tmp_path / "it", fail)
        assert not (tmp_path / "it").exists()
        publish(tmp_path / "it", lambda directory: (directory / "whole").touch())
        assert [path.name for path in (tmp_path / "it").iterdir()] == ["whole"]


def test_another_family_of_models_is_a_line_in_one_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoints are found by what their index names, loaded and generated with; ACE-Step's stay its own."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "SinePipeline"}')
    given = settings(tmp_path, model=str(tmp_path), threads=1)
    with pytest.raises(ConfigurationError, match="names a SinePipeline; what can be loaded is AceStepPipeline"):
        loading.load(given)
    sines = ModelFamily(
        frozenset({"SinePipeline"}),
        lambda checkpoint, _device, _settings: SineEngine(checkpoint.directory),
        lambda directory: "gather its sines first" if (directory / "sines").exists() else None,
    )
    monkeypatch.setattr(loading, "FAMILIES", (*loading.FAMILIES, sines))
    engine = loading.load(given)
    assert engine.model.name == "sine"
    requests = [SongRequest(GenerationSpec(prompt="sine", duration_s=1.0, steps=1), seed) for seed in range(2)]
    assert [place for place, _ in engine.generate(requests, unobserved)] == [0, 1]
    (tmp_path / "model_index.json").rename(tmp_path / "sines")
    with pytest.raises(ConfigurationError, match="gather its sines first"):
        loading.load(given)


class ShortMemory:
    """An engine whose card holds songs of ten seconds."""

    model = MODEL.model_copy(update={"max_duration_s": 10.0})

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    def generate_all(self, batch: list[SongRequest], _observe: StepObserver) -> None:
        self.asked_s += [request.spec.duration_s for request in batch]


def test_a_small_card_compiles_no_song_that_it_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "set_stance", lambda _: None)
    engine = ShortMemory()
    warm_up(engine, 2)  # type: ignore[arg-type]  # all that is asked of an engine here
    assert max(engine.asked_s) == 10.0


def test_a_checkpoint_without_a_part_is_named_before_it_is_loaded(copy: Path) -> None:
    shutil.rmtree(copy / "transformer")
    with pytest.raises(ConfigurationError, match=f"{copy}: is not whole"):
        need_of(copy, torch.bfloat16)
