"""A planner made here (random, tiny, never downloaded) is loaded; what is no planner is refused in words."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from gpu_worker.engine.memory.measuring import Live
from gpu_worker.planner.grammar import Grammars
from gpu_worker.planner.loading import METADATA_ALONE, load_parts, need_of, planner_in
from gpu_worker.planner.planner import Planner
from gpu_worker.planner.prompts import Metadata
from gpu_worker.planner.questions import Song
from gpu_worker.planner.vocabulary import Vocabulary
from serinette.errors import ConfigurationError
from tests.tiny_checkpoint import CODES, tiny_tokenizer

CPU = torch.device("cpu")


def tiny_model(tokens: int, *, layers: int = 2, **changed: object) -> Qwen3ForCausalLM:
    """Random, and far from uniform; wider than its tokenizer, as the real one's embedding is."""
    config = Qwen3Config(
        vocab_size=tokens + 7,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        initializer_range=0.3,
        max_position_embeddings=8192,
    )
    for name, value in changed.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config)


def tiny_planner(codes: Sequence[int] = range(CODES), *, layers: int = 2, codebook: int | None = None) -> Planner:
    """Writes captions of at most 20 tokens and lyrics of 30: a random model ends none by itself."""
    tokenizer = tiny_tokenizer(codes)
    model = tiny_model(len(tokenizer), layers=layers)
    vocabulary = Vocabulary(tokenizer, model.config.vocab_size, codebook)
    return Planner(model, vocabulary, Grammars(vocabulary, most_caption_tokens=20, most_lyrics_tokens=30))


def save_tiny_planner(directory: Path) -> Path:
    """Write one as a planner's directory, which is answered."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(directory)
    tiny_model(len(tokenizer)).save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is slower on several, and far slower where the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def unobserved(_done: int, _total: int | None) -> frozenset[int]:
    """Gives nothing up."""
    return frozenset()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_planner(tmp_path_factory.mktemp("planner"))


@pytest.fixture
def planner(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "planner")


def change(path: Path, **changed: object) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changed}))


def refused(directory: Path) -> str:
    with pytest.raises(ConfigurationError) as refusal:
        Planner.load(directory, device=CPU, dtype=torch.float32)
    return str(refusal.value)


def test_a_directory_is_loaded_and_plans_what_its_parts_would(saved: Path) -> None:
    song = Song("calm piano", given=Metadata(caption="A calm piano", duration_s=3), seed=5)
    loaded = Planner.load(saved, device=CPU, dtype=torch.float32)
    assert loaded.codebook == CODES
    assert loaded.plan([song], unobserved) == tiny_planner().plan([song], unobserved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_the_precision_repeats_itself(saved: Path, dtype: torch.dtype) -> None:
    """As on a GPU: with rows of different lengths, padded, and guidance."""
    planner = Planner.load(saved, device=CPU, dtype=dtype)
    songs = [Song("calm " * length, given=Metadata("A calm piano", duration_s=3), seed=length) for length in (1, 90)]
    plans = planner.plan(songs, unobserved)
    assert [len(plan.codes) for plan in plans] == [15, 15]
    assert planner.plan(songs, unobserved) == plans


def test_ids_come_from_the_tokenizer(saved: Path) -> None:
    """The same model, whose codes have their ids in another order, writes other names for the same tokens."""
    order = random.Random(1).sample(range(CODES), CODES)
    song = Song("calm", given=Metadata(bpm=100, caption="x", duration_s=4, key_scale="C major", time_signature="4"))
    plain, scattered = (tiny_planner(codes).codes([song], unobserved)[0] for codes in (range(CODES), order))
    assert [order[code] for code in plain] == scattered
    assert Vocabulary(tiny_tokenizer(order), 2000).code_ids != Vocabulary(tiny_tokenizer(), 2000).code_ids


def test_only_codes_of_the_codebook_are_written() -> None:
    song = Song("calm", given=Metadata(duration_s=40))
    (codes,) = tiny_planner(codebook=7).codes([song], unobserved)
    assert len(codes) == 200
    assert set(codes) <= set(range(7))
    assert max(tiny_planner().codes([song], unobserved)[0]) >= 7


def test_what_a_checkpoint_brings(saved: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    assert planner_in_made(checkpoint) is None
    chat = shutil.copytree(saved, checkpoint / "an-embedding")  # a causal model, but none that knows codes
    strip_codes(chat)
    shutil.copytree(saved, checkpoint / "text_encoder")  # the pipeline's own part
    assert planner_in(checkpoint) is None
    brought = shutil.copytree(saved, checkpoint / "acestep-5Hz-lm-0.6B")
    assert planner_in(checkpoint) == brought
    shutil.copytree(saved, checkpoint / "acestep-5Hz-lm-4B")
    with pytest.raises(ConfigurationError, match=r"2 planners \(acestep-5Hz-lm-0.6B, acestep-5Hz-lm-4B\); set"):
        planner_in(checkpoint)


def planner_in_made(checkpoint: Path) -> Path | None:
    checkpoint.mkdir()
    (checkpoint / "model_index.json").write_text(json.dumps({"text_encoder": ["transformers", "Qwen3Model"]}))
    return planner_in(checkpoint)


def strip_codes(directory: Path) -> None:
    for path in directory.glob("token*.json"):
        path.unlink()
    tiny_tokenizer(()).save_pretrained(directory)


def test_no_directory_no_model_no_language_model(planner: Path, tmp_path: Path) -> None:
    assert "no config.json" in refused(tmp_path / "nowhere")
    (tmp_path / "model_index.json").write_text("{}")
    assert "this is a diffusers pipeline" in refused(tmp_path)
    change(planner / "config.json", model_type="clip")
    assert "says clip, no causal language model" in refused(planner)


def test_a_chat_model_is_no_planner_unless_it_says_so(planner: Path) -> None:
    strip_codes(planner)
    assert "no <|audio_code_0|>" in refused(planner)
    assert "5Hz-lm" in refused(planner)  # what to do
    change(planner / "config.json", **{METADATA_ALONE: True})
    alone = Planner.load(planner, device=CPU, dtype=torch.float32)
    assert alone.codebook == 0


def test_files_that_are_not_whole(planner: Path) -> None:
    weights = planner / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert re.search(r"damaged or cut off .* fetch it again", refused(planner))
    weights.unlink()
    assert "no .safetensors" in refused(planner)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "1 of its weights are missing or misshapen, among them model.layers.1.mlp.up_proj.weight" in refused(planner)


def test_a_tokenizer_that_is_not_the_models(planner: Path) -> None:
    tiny_tokenizer(range(CODES + 100)).save_pretrained(planner)
    assert "the two are not of one planner" in refused(planner)


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (lambda: tiny_tokenizer(template=None), "no end token or no chat template"),
        (lambda: tiny_tokenizer([0, 1, 3]), "gaps between them"),
    ],
)
def test_a_tokenizer_that_is_no_planners(planner: Path, tokenizer: object, words: str) -> None:
    for path in planner.glob("*.jinja"):
        path.unlink()
    assert callable(tokenizer)
    tokenizer().save_pretrained(planner)
    assert words in refused(planner)


def test_a_tokenizer_that_cannot_write_every_byte(planner: Path) -> None:
    path = planner / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["model"]["vocab"]["日"] = max(raw["model"]["vocab"].values()) + 1
    path.write_text(json.dumps(raw))
    assert "not a byte-level one" in refused(planner)


def test_the_estimate_of_memory_holds_and_is_not_much_too_large(saved: Path) -> None:
    """Counted as torch allocates it, on the CPU, while ten songs are written."""
    need = need_of(saved, torch.float32)
    model, tokenizer = load_parts(saved, torch.float32)
    assert need.weights_bytes == sum(weight.nbytes for weight in {*model.parameters()})
    planner = Planner.of_parts(model, tokenizer, device=CPU)
    songs = [Song("calm " * 90, "la la\n" * 60, Metadata("calm", duration_s=4), seed) for seed in range(10)]
    with Live() as live:
        planner.plan(songs, unobserved)
    estimated = need.working_bytes(len(songs), prompt_tokens=700, written_tokens=40)
    assert live.peak < estimated < 4 * live.peak
