"""The micro-planner's lessons are true of the music box, and what its script saves is a planner."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import torch

from gpu_worker.planner.planner import Planner
from gpu_worker.planner.prompts import CHOICES
from gpu_worker.planner.questions import write
from tests.unit.test_planner_loading import CPU, one_thread, unobserved
from tools.micro_planner import lesson, train
from tools.music_box import words

__all__ = ["one_thread"]


tokenizer, meanings = cache(words.tokenizer), cache(words.meaning_of_tokens)


def understood(text: str) -> set[str]:
    """What the music box makes of a text: meanings."""
    places = [meanings()[token] for token in tokenizer().encode(text)]
    return {words.MEANINGS[place] for place in places} - {words.END}


def test_lessons_grant_what_their_wishes_say() -> None:
    """Read by the box's own tokenizer: the caption plays what was asked, in the tempo and key that were asked."""
    dice = random.Random(0)
    for _ in range(300):
        one = lesson(dice)
        written, metadata = one.metadata.trained(), one.metadata
        wish = one.question.user.partition("# Lyric")[0]
        assert set(written) == {"caption", *CHOICES}
        assert all(written[name] in values for name, values in CHOICES.items())
        caption = understood(metadata.caption or "")
        asked = understood(wish)
        kinds = {*words.MOODS, "drums"} | (set(words.INSTRUMENTS) if "instruments" in one.said else set())
        assert caption & kinds == asked & kinds, wish
        if "bpm" in one.said:
            assert str(metadata.bpm) in wish
        if "key" in one.said:
            assert understood(f"keyscale: {metadata.key_scale}") <= asked


def test_what_is_saved_is_a_small_planner_of_metadata_alone(tmp_path: Path) -> None:
    train(tmp_path, cpu_minutes=0.005)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3_000_000
    planner = Planner.load(tmp_path, device=CPU, dtype=torch.float32)
    assert planner.codebook == 0
    (answer,) = planner.answer([write("ハ長調の静かなハープ", instrumental=True)], unobserved)
    assert answer and answer.metadata.caption
