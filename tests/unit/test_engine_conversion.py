"""ACE-Step's own layout is made into ours: on a checkpoint of ours that is split backwards into theirs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu_worker.engine import loading
from gpu_worker.engine.ace_step.conversion import DECODER, SILENCE, TEXT_ENCODER, convert, main, renamed
from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.ace_step.loading import ACE_STEP
from gpu_worker.engine.interface import SongRequest
from serinette.errors import ConfigurationError
from serinette.spec import GenerationSpec
from tests.tiny_checkpoint import build, engine_of

THEIRS = {
    "transformer": "decoder.",
    "condition_encoder": "encoder.",
    "audio_tokenizer": "tokenizer.",
    "audio_token_detokenizer": "detokenizer.",
}


def theirs(name: str) -> str:
    """Our name of a tensor, as the original has it."""
    for pattern, replacement in (
        (r"\bto_([qkv])\b", r"\1_proj"),
        (r"\bto_out\.0\b", "o_proj"),
        (r"\bnorm_([qk])\b", r"\1_norm"),
        (r"\b(proj_in|proj_out)_conv\b", r"\1.1"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def split(ours: Path, directory: Path, *, shards: int = 1) -> Path:
    """Write `ours` in the original's layout; answers the checkpoint's directory."""
    checkpoint = directory / "acestep-v15-tiny"
    checkpoint.mkdir(parents=True)
    tensors: dict[str, torch.Tensor] = {}
    config: dict[str, Any] = {"architectures": ["AceStepConditionGenerationModel"], "auto_map": {"x": "y"}}
    for part, prefix in reversed(THEIRS.items()):  # the transformer's own sizes count
        config |= {
            name: value
            for name, value in json.loads((ours / part / "config.json").read_text()).items()
            if not name.startswith("_")
        }
        for name, tensor in load_file(ours / part / "diffusion_pytorch_model.safetensors").items():
            if name == "silence_latent":
                torch.save(tensor.transpose(1, 2).contiguous(), checkpoint / SILENCE)
            elif name == "null_condition_emb":
                tensors[name] = tensor
            else:
                tensors[prefix + theirs(name)] = tensor
    tensors["tokenizer.quantizer.layers.0._levels"] = torch.tensor([8])  # what some versions save of what they compute
    names = sorted(tensors)
    for shard in range(shards):
        some = {name: tensors[name] for name in names[shard::shards]}
        save_file(some, checkpoint / f"model-{shard}.safetensors")
    (checkpoint / "config.json").write_text(json.dumps(config))
    shutil.copytree(ours / "vae", directory / DECODER)
    shutil.copytree(ours / "text_encoder", directory / TEXT_ENCODER)
    shutil.copytree(ours / "tokenizer", directory / TEXT_ENCODER, dirs_exist_ok=True)
    return checkpoint


def song(engine: AceStepEngine, **asked: Any) -> Any:
    spec = GenerationSpec(**{"prompt": "jazz", "lyrics": "la", "duration_s": 1.0, "steps": 2, **asked})
    (made,) = engine.generate_all([SongRequest(spec, 1)], lambda *_: frozenset())
    assert made is not None
    return made.samples


def loaded(directory: Path) -> AceStepEngine:
    return engine_of(directory)


@pytest.mark.parametrize(("turbo", "shards"), [(True, 1), (False, 3)])
def test_what_is_split_and_converted_generates_the_same_bits(
    tmp_path: Path, turbo: bool, shards: int, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "ours", turbo=turbo)
    checkpoint = split(tmp_path / "ours", tmp_path / "repository", shards=shards)
    assert main([str(tmp_path / "repository"), str(tmp_path / "made")]) == 0
    assert capsys.readouterr().out.strip().endswith(f"SERINETTE_MODEL={tmp_path / 'made'}")
    convert(checkpoint, tmp_path / "again")
    before, after = loaded(tmp_path / "ours"), loaded(tmp_path / "made")
    assert after.model.turbo is turbo
    assert after.model.tasks == before.model.tasks
    for asked in ({}, {"audio_codes": "<|audio_code_3|><|audio_code_9|>"}):
        assert np.array_equal(song(before, **asked), song(after, **asked))
    assert np.array_equal(song(loaded(tmp_path / "again")), song(before))


def test_names_go_there_and_back(tmp_path: Path) -> None:
    build(tmp_path / "ours", turbo=True)
    for part in THEIRS:
        for name in load_file(tmp_path / "ours" / part / "diffusion_pytorch_model.safetensors"):
            assert renamed(theirs(name)) == name


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    build(directory / "ours", turbo=True)
    split(directory / "ours", directory / "repository")
    return directory / "repository"


def test_the_command_line_converts(repository: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    command = [sys.executable, "-m", "serinette.cli", "convert", str(repository), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(f"SERINETTE_MODEL={made}")
    assert loading.family_of(made) is ACE_STEP


def test_it_fails_with_a_reason(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(repository), str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err


class TestRefused:
    def test_a_worker_says_how_to_convert_it(self, repository: Path) -> None:
        for directory in (repository, repository / "acestep-v15-tiny"):
            with pytest.raises(ConfigurationError, match=f"serinette convert {directory}"):
                loading.family_of(directory)

    def test_one_of_several_is_chosen(self, repository: Path, tmp_path: Path) -> None:
        both = tmp_path / "both"
        shutil.copytree(repository, both)
        shutil.copytree(both / "acestep-v15-tiny", both / "acestep-v15-other")
        with pytest.raises(ConfigurationError, match="--variant: acestep-v15-other, acestep-v15-tiny"):
            convert(both, tmp_path / "out")
        assert (convert(both, tmp_path / "out", variant="acestep-v15-other") / "model_index.json").exists()

    def test_a_checkpoint_without_its_parts_asks_for_them(self, repository: Path, tmp_path: Path) -> None:
        alone = tmp_path / "acestep-v15-base"
        shutil.copytree(repository / "acestep-v15-tiny", alone)
        with pytest.raises(ConfigurationError, match="--parts"):
            convert(alone, tmp_path / "out")
        assert (convert(alone, tmp_path / "out", parts=repository) / "model_index.json").exists()

    def test_what_is_no_checkpoint_and_what_is_there_already(self, repository: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="no checkpoint in ACE-Step's layout"):
            convert(tmp_path, tmp_path / "out")
        with pytest.raises(ConfigurationError, match="is there already"):
            convert(repository, tmp_path)

    def test_a_checkpoint_that_is_cut_off_leaves_nothing(self, repository: Path, tmp_path: Path) -> None:
        cut = tmp_path / "cut"
        shutil.copytree(repository, cut)
        (weights,) = (cut / "acestep-v15-tiny").glob("*.safetensors")
        with weights.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(ConfigurationError, match="cannot be converted"):
            convert(cut, tmp_path / "out")
        assert not (tmp_path / "out").exists()
