"""LoRAs in the real pipeline, small: each song with its own, and none left behind for the next."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from gpu_worker.engine.ace_step.adapters import own_strength, weights_in
from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.ace_step.pipeline import SongPipeline
from gpu_worker.engine.interface import SongRequest
from gpu_worker.wire import Samples
from serinette.errors import ConfigurationError, Unsupported
from serinette.spec import GenerationSpec
from tests.tiny_checkpoint import engine_of, unobserved

NAMES = ("warm", "bright", "dry")
RANK = 4


@pytest.fixture(scope="module")
def places(tiny_turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint, adapters trained on nothing, and one for another checkpoint."""
    root = tmp_path_factory.mktemp("models")
    made = {"model": tiny_turbo}
    for seed, name in enumerate(NAMES):
        made[name] = adapter(tiny_turbo, root / name, seed)
    made["foreign"] = root / "foreign"
    made["foreign"].mkdir()
    weight = torch.zeros(RANK, 7)
    names = [f"transformer.layers.0.self_attn.to_q.lora_{side}.weight" for side in "AB"]
    save_file({names[0]: weight, names[1]: weight.T.contiguous()}, made["foreign"] / "weights.safetensors")
    return made


def adapter(model: Path, directory: Path, seed: int) -> Path:
    pipe = SongPipeline.from_pretrained(model)
    pipe.transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_v"]))
    random = torch.Generator().manual_seed(seed)
    for name, weight in pipe.transformer.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=random) / 3
    SongPipeline.save_lora_weights(directory, get_peft_model_state_dict(pipe.transformer))
    return directory


@pytest.fixture(scope="module")
def engine(places: dict[str, Path]) -> AceStepEngine:
    loras = {name: str(place) for name, place in places.items() if name != "model"} | {"gone": "/nowhere/at/all"}
    return engine_of(places["model"], loras=loras, max_loras=2)


def generate(engine: AceStepEngine, lora: str | None = None, scale: float = 1.0, songs: int = 1) -> list[Samples]:
    spec = GenerationSpec(prompt="jazz", duration_s=1.0, steps=2, lora=lora, lora_scale=scale)
    engine.sampling(spec)
    made = engine.generate_all([SongRequest(spec, seed) for seed in range(songs)], unobserved)
    return [song.samples for song in made if song]


def test_adapters_interleaved_generate_what_each_generates_alone(engine: AceStepEngine) -> None:
    asked = [(None, 1.0), ("warm", 1.0), ("bright", 1.0), ("warm", 0.5), ("warm", 0.0)]
    first = [generate(engine, *each)[0] for each in asked]
    again = [generate(engine, *each)[0] for each in reversed(asked)][::-1]
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)
    plain, warm, bright, weak, silent = first
    assert np.array_equal(silent, plain)
    assert len({song.tobytes() for song in (plain, warm, bright, weak)}) == 4


def test_what_an_engine_without_adapters_generates_is_generated_beside_them(
    engine: AceStepEngine, places: dict[str, Path]
) -> None:
    generate(engine, "warm")
    stock = engine_of(places["model"])
    assert np.array_equal(generate(engine)[0], generate(stock)[0])


def test_the_one_unused_longest_goes_and_comes_again(engine: AceStepEngine) -> None:
    held = engine._adapters._loaded
    before = generate(engine, "warm")[0]
    generate(engine, "bright")
    generate(engine, "warm")
    generate(engine, "dry")
    assert list(held) == ["warm", "dry"]
    generate(engine, "bright")
    assert list(held) == ["dry", "bright"]
    assert np.array_equal(generate(engine, "warm")[0], before)


def test_a_batch_has_one_adapter(engine: AceStepEngine) -> None:
    together, alone = generate(engine, "warm", songs=2), generate(engine, "warm")
    assert np.abs(together[0] - alone[0]).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unheard-of", "published here are bright, dry, foreign, gone, warm"),
        ("gone", "no such directory"),
        ("foreign", "cannot be loaded beside this checkpoint"),
    ],
)
def test_one_that_cannot_be_had_is_refused_and_leaves_nothing(engine: AceStepEngine, name: str, words: str) -> None:
    plain, warm = generate(engine)[0], generate(engine, "warm")[0]
    with pytest.raises(Unsupported, match=words) as refused:
        generate(engine, name)
    assert refused.value.field == "lora"
    assert np.array_equal(generate(engine, "warm")[0], warm)
    assert np.array_equal(generate(engine)[0], plain)


@pytest.mark.parametrize(
    ("config", "strength"),
    [
        (None, 1.0),
        ("not json", 1.0),
        ({"r": 8, "lora_alpha": 16}, 2.0),
        ({"r": 16, "lora_alpha": 16, "use_rslora": True}, 4.0),
        ({"r": 8}, 1.0),
        ({"r": 0, "lora_alpha": 16}, 1.0),
    ],
)
def test_an_adapter_is_as_strong_as_it_was_trained(
    config: dict[str, object] | str | None, strength: float, tmp_path: Path
) -> None:
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "adapter_config.json").write_text(text)
    weights = tmp_path / "weights.safetensors"
    save_file({"lora": torch.zeros(1)}, weights)
    assert own_strength(tmp_path, weights) == strength


def test_an_adapter_that_states_its_strength_twice_is_as_strong_as_one_that_states_it_once(
    places: dict[str, Path], tmp_path: Path
) -> None:
    """In diffusers' way, within its weights, and in PEFT's, in a file of its own."""
    config = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["to_q", "to_v"]}
    weights = load_file(weights_in(places["warm"]))
    layers = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    loras = {name: tmp_path / name for name in ("plain", "inside", "beside", "both")}
    for name, directory in loras.items():
        metadata = config if name in {"inside", "both"} else None
        SongPipeline.save_lora_weights(directory, layers, transformer_lora_adapter_metadata=metadata)
        if name in {"beside", "both"}:
            (directory / "adapter_config.json").write_text(json.dumps(config))
    published = {name: str(directory) for name, directory in loras.items()}
    engine = engine_of(places["model"], loras=published)
    songs = {name: generate(engine, name)[0] for name in loras}
    assert np.array_equal(songs["both"], songs["beside"])
    assert np.array_equal(songs["both"], songs["inside"])
    assert np.array_equal(songs["both"], generate(engine, "plain", scale=2.0)[0])
    assert not np.array_equal(songs["both"], songs["plain"])


def test_which_file_holds_the_weights_is_no_guess(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="found none"):
        weights_in(tmp_path)
    (tmp_path / "a.safetensors").touch()
    assert weights_in(tmp_path).name == "a.safetensors"
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(ConfigurationError, match=r"found a\.safetensors, b\.safetensors"):
        weights_in(tmp_path)
