"""Where a checkpoint comes from, whether it is whole, and what a person is told when it is not."""

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
from gpu_worker.engine.checkpoint import build, bundled_checkpoint
from gpu_worker.engine.publishing import publish
from gpu_worker.engine.revision import revision_of
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled_checkpoint(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "tiny"
    build(directory, turbo=True)
    return directory


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def settings(directory: Path, **given: Any) -> WorkerSettings:
    return WorkerSettings(work_dir=directory, **given)


class TestBundled:
    def test_it_is_built_once(self, bundled: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in bundled.rglob("*")}
        assert bundled_checkpoint(bundled.parent) == bundled
        assert {path: path.stat().st_mtime_ns for path in bundled.rglob("*")} == before

    def test_two_builds_are_the_same_to_the_byte(self, tiny: Path, tmp_path: Path) -> None:
        state = torch.random.get_rng_state()
        build(tmp_path / "again", turbo=True)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert revision_of(tmp_path / "again") == revision_of(tiny)
        build(tmp_path / "base", turbo=False)
        assert revision_of(tmp_path / "base") != revision_of(tiny)


class TestLocate:
    def test_a_directory_by_path_or_url(self, copy: Path, tmp_path: Path) -> None:
        for model in (str(copy), f"file://{copy}"):
            assert loading.locate(settings(tmp_path, model=model)) == loading.Checkpoint(copy, "copy")

    def test_the_name_is_the_operators_if_given(self, copy: Path, tmp_path: Path) -> None:
        engine = loading.load(settings(tmp_path, model=str(copy), model_name="mine", threads=1))
        assert engine.model.name == "mine"
        assert engine.device.startswith("cpu") or torch.cuda.is_available()

    @pytest.mark.parametrize("model", ["/no/such/directory", "nonsense", "http://example.org/model", "s3://bucket"])
    def test_what_is_nowhere_is_told_with_what_is_allowed(self, tmp_path: Path, model: str) -> None:
        with pytest.raises(ConfigurationError, match=model):
            loading.locate(settings(tmp_path, model=model))

    def test_a_hub_that_is_away_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ConfigurationError, match="model nobody/has-this: the hub does not give it"):
            loading.locate(settings(tmp_path, model="nobody/has-this@main"))


class TestWhole:
    def test_a_whole_one_passes(self, copy: Path) -> None:
        loading.check(copy)

    def test_a_cut_file_is_named(self, copy: Path) -> None:
        weights = copy / "transformer/diffusion_pytorch_model.safetensors"
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size - 100)
        with pytest.raises(ConfigurationError, match=f"{weights}: is damaged or cut off"):
            loading.load(settings(copy, model=str(copy)))

    def test_another_pipeline_is_named(self, copy: Path) -> None:
        (copy / "model_index.json").write_text(json.dumps({"_class_name": "StableAudioPipeline"}))
        with pytest.raises(ConfigurationError, match="names a StableAudioPipeline"):
            loading.check(copy)

    @pytest.mark.parametrize("text", [None, "{", "[]"])
    def test_no_pipeline_at_all(self, copy: Path, text: str | None) -> None:
        (copy / "model_index.json").unlink()
        if text:
            (copy / "model_index.json").write_text(text)
        with pytest.raises(ConfigurationError, match="no checkpoint in diffusers' layout"):
            loading.check(copy)

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
    def test_what_cannot_be_is_told(self, tmp_path: Path, given: dict[str, Any], words: str) -> None:
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
