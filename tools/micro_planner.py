"""Trains the bundled micro-planner: a language model of half a million parameters that plans for the music box.

    nice -n 15 python -m tools.micro_planner train DIRECTORY [--cpu-minutes 10]
    python -m tools.micro_planner evaluate DIRECTORY [--wishes 200]
    python -m tools.micro_planner pack DIRECTORY

It writes metadata and captions alone, in the planner's own format. Its lessons are drawn like the composer's tunes: a
wish in the music box's words (English and Japanese, among others that mean nothing to it), and the metadata of a tune
that grants the wish. What a wish leaves open is drawn from the mood: sad tunes are minor and slow, dances are fast.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gpu_worker.bundled import PLANNER_ARCHIVE
from gpu_worker.planner import prompts, questions
from gpu_worker.planner.decoding import Sampling
from gpu_worker.planner.loading import METADATA_ALONE, TEMPERATURE, TRAINED
from gpu_worker.planner.planner import Planner
from gpu_worker.planner.prompts import Metadata
from serinette.spec import UNKNOWN_LANGUAGE
from tools.music_box import words

log = logging.getLogger(__name__)

TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = "<|im_end|>"
TONICS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
BPM = {"plain": (80, 124), "happy": (100, 144), "calm": (60, 92), "sad": (60, 88), "dance": (116, 160)}
MINOR = {"plain": 0.4, "happy": 0.05, "calm": 0.3, "sad": 0.95, "dance": 0.5}
NAMES = {"bell": "music box", "pluck": "harp", "pipe": "flute"}
_NOTHING = (
    "song about my for the with some rain summer winter night morning city cat dog sea love friend train home moon "
    "please tune melody piece music little very warm river garden window birthday game rainy "
    "雨 夏 冬 夜 朝 街 猫 犬 海 恋 友達 電車 月 曲 音楽 ください の を で な 小さな とても 春 庭 窓 誕生日"
)
NOTHING = _NOTHING.split()
BATCH, LONGEST = 24, 192


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question of any kind, and the metadata that answers it; `said` names what the question asks outright."""

    question: questions.Question
    metadata: Metadata
    said: frozenset[str]


def lesson(dice: random.Random) -> Lesson:
    """Draw a lesson."""
    japanese = dice.random() < 0.4
    mood = dice.choice(["plain", *words.MOODS])
    instruments = sorted(dice.sample(list(NAMES), 2 if dice.random() < 0.15 else 1))
    drums = dice.random() < 0.2
    tonic, minor = dice.randrange(12), dice.random() < MINOR[mood]
    bpm = dice.randint(*BPM[mood])
    said = {name for name, chance in (("bpm", 0.35), ("key", 0.85), ("instruments", 0.8)) if dice.random() < chance}
    if "bpm" in said:
        bpm = dice.randint(60, 160)
    if "key" in said:
        minor = dice.random() < 0.5
    pieces = [] if mood == "plain" else [_spelled(dice, words.MOODS[mood], japanese=japanese)]
    pieces += [
        _spelled(dice, words.INSTRUMENTS[one], japanese=japanese) for one in instruments if "instruments" in said
    ]
    pieces += [_spelled(dice, words.TRACKS["drums"], japanese=japanese)] if drums else []
    if "bpm" in said:
        pieces.append(
            dice.choice((f"{bpm} bpm", f"{bpm}bpm", f"bpm {bpm}", f"テンポ{bpm}" if japanese else f"{bpm} BPM"))
        )
    if "key" in said:
        spellings = [word for word, meaning in words.SPELLINGS.items() if meaning == words.key(tonic, minor=minor)]
        plain = f"{TONICS[tonic]} {'minor' if minor else 'major'}"  # as most people write it
        rare = _spelled(dice, [word for word in spellings if ":" not in word], japanese=japanese)
        pieces.append(plain if dice.random() < 0.6 else rare)
    pieces += dice.choices(NOTHING, k=dice.randrange(5))
    dice.shuffle(pieces)
    text = (dice.choice(("、", " ")) if japanese else dice.choice((", ", " "))).join(pieces)
    language = ("ja" if japanese else "en") if dice.random() < 0.7 else None
    metadata = Metadata(
        caption=_caption(mood, instruments, drums=drums),
        bpm=bpm,
        duration_s=float(dice.choice(range(15, 121, 5))),
        key_scale=f"{TONICS[tonic]} {'minor' if minor else 'major'}",
        time_signature="4",
        vocal_language=language or UNKNOWN_LANGUAGE,
    )
    return Lesson(_question(dice, text, language), metadata, frozenset(said))


def _question(dice: random.Random, text: str, language: str | None) -> questions.Question:
    lyrics = ""
    if language:
        line = " ".join(dice.choices(NOTHING, k=4))
        lyrics = f"[Verse]\n{'さくら ' if language == 'ja' else ''}{line}"
    kind = dice.randrange(3)
    if kind == 0:
        return questions.write(text, instrumental=language is None)
    if kind == 1:
        return questions.put_in_order(text, lyrics)
    return questions.metadata_of(questions.Song(text, lyrics))


def _spelled(dice: random.Random, spellings: list[str] | tuple[str, ...], *, japanese: bool) -> str:
    """In the language that is spoken, mostly."""
    fitting = [word for word in spellings if word.isascii() != japanese]
    word = dice.choice(fitting if fitting and dice.random() < 0.9 else list(spellings))
    return word.capitalize() if dice.random() < 0.2 else word


def _caption(mood: str, instruments: list[str], *, drums: bool) -> str:
    played = " and ".join(NAMES[one] for one in instruments)
    return f"A {'simple' if mood == 'plain' else mood} tune on the {played}{', with drums' if drums else ''}."


def messages_of(asked: questions.Question) -> list[prompts.Message]:
    """The turns that the planner makes of a question."""
    return prompts.request(asked.instruction, asked.user)


def train_tokenizer(dice: random.Random) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 1,024 tokens, digits apart."""
    made = Tokenizer(models.BPE())
    pieces = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+\n*|\s*\n+|\s+(?!\S)|\s+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    texts = []
    for each in (lesson(dice) for _ in range(4000)):
        texts += [turn["content"] for turn in messages_of(each.question)] + [prompts.thought(each.metadata)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1024, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers types only its models
        tokenizer_object=made,
        chat_template=TEMPLATE,
        eos_token=END,
        pad_token=END,
    )
    tokenizer.add_tokens(["<|im_start|>", "<think>", "</think>"])
    return tokenizer


def make_model(tokens: int) -> Qwen3ForCausalLM:
    """Random, the same each time."""
    config = Qwen3Config(
        vocab_size=-(-tokens // 8) * 8,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    setattr(config, METADATA_ALONE, True)
    setattr(config, TEMPERATURE, 0.5)  # at more, instruments that were not asked for appear
    setattr(config, TRAINED, [24, 8])  # nearly all lessons; of more than 40 together it loses the thread
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


def batch(dice: random.Random, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Token ids [songs, tokens] padded on the right, and labels: of the answer alone."""
    ids = torch.zeros(BATCH, LONGEST, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    longest = 0
    for row in range(BATCH):
        each = lesson(dice)
        turns = tokenizer.apply_chat_template(messages_of(each.question), tokenize=False, add_generation_prompt=True)
        asked = tokenizer.encode(str(turns))
        answer = tokenizer.encode(f"{prompts.thought(each.metadata)}{END}")
        both = torch.tensor((asked + answer)[:LONGEST])
        ids[row, : len(both)] = both
        labels[row, len(asked) : len(both)] = both[len(asked) :]
        longest = max(longest, len(both))
    return ids[:, :longest], labels[:, :longest]


def train(directory: Path, cpu_minutes: float) -> None:
    """Train for so much of this process's CPU time, and save: from nothing, or from what is there, on other lessons."""
    torch.set_num_threads(1)
    dice = random.Random(0)  # noqa: S311  # lessons, not secrets
    resumed = (weights := directory / "model.safetensors").is_file()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory) if resumed else train_tokenizer(dice)
    model = make_model(len(tokenizer)).train()
    if resumed:
        load_model(model, weights)
        dice.seed(hashlib.sha256(weights.read_bytes()).digest())
    numbers = sum(weight.numel() for weight in model.parameters())
    log.info("%d parameters, %d tokens", numbers, len(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    steps, begun, reported = 0, time.process_time(), 0.0
    while (gone := (time.process_time() - begun) / 60 / cpu_minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (steps + 1) / 50) * max(0.02, 1 - gone**2)
        ids, labels = batch(dice, tokenizer)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if gone >= reported:
            log.info("%.0f %%, step %d, loss %.3f", 100 * gone, steps, loss.item())
            reported += 0.05
            save(model, tokenizer, directory)
    save(model, tokenizer, directory)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """In bfloat16, as a planner's directory."""
    half = make_model(len(tokenizer))
    half.load_state_dict(model.state_dict())
    half.bfloat16().save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(directory)


def evaluate(directory: Path, wishes: int) -> dict[str, float]:
    """How often what is asked outright is granted, over lessons that training did not draw."""
    torch.set_num_threads(1)
    planner = Planner.load(directory, device=torch.device("cpu"), dtype=torch.float32)
    dice = random.Random(1_000_003)  # noqa: S311  # likewise
    lessons = [lesson(dice) for _ in range(wishes)]
    likeliest = Sampling(temperature=0.0, cfg_scale=1.0)
    asked = [questions.Question(one.question.instruction, one.question.user, sampling=likeliest) for one in lessons]
    hits: dict[str, list[bool]] = {"caption": [], "bpm": [], "key": []}
    for one, answer in zip(lessons, planner.answer(asked, lambda _done, _total: frozenset()), strict=True):
        assert answer  # noqa: S101  # nothing is given up
        if "instruments" in one.said:
            hits["caption"].append(answer.metadata.caption == one.metadata.caption)
        if "bpm" in one.said:
            hits["bpm"].append(answer.metadata.bpm == one.metadata.bpm)
        if "key" in one.said:
            hits["key"].append(answer.metadata.key_scale == one.metadata.key_scale)
    return {name: sum(found) / len(found) for name, found in hits.items()}


def pack(directory: Path) -> None:
    """Write the archive that the worker brings: the same bytes for the same files."""
    with zipfile.ZipFile(PLANNER_ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for path in directory.iterdir() if path.is_file()):
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    log.info("%s: %.2f MB", PLANNER_ARCHIVE, PLANNER_ARCHIVE.stat().st_size / 1e6)


def main() -> None:
    """Train, evaluate or pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "evaluate", "pack"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cpu-minutes", type=float, default=10.0)
    parser.add_argument("--wishes", type=int, default=200)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.what == "train":
        train(given.directory, given.cpu_minutes)
    elif given.what == "pack":
        pack(given.directory)
    else:
        log.info("%s", evaluate(given.directory, given.wishes))


if __name__ == "__main__":
    main()
