"""The micro-planner's lessons are true of the music box, and what its script saves is a planner."""

from __future__ import annotations

import random
import re
import zipfile
from functools import cache
from pathlib import Path

import torch

from gpu_worker.bundled import PLANNER_ARCHIVE
from gpu_worker.engine.ace_step.planning import SongPlanner
from gpu_worker.engine.interface import BatchProgress, SongRequest
from gpu_worker.planner.planner import Planner
from gpu_worker.planner.prompts import CHOICES
from gpu_worker.planner.questions import write
from serinette.spec import INSTRUMENTAL, GenerationSpec
from tests.tiny_checkpoint import unobserved as unobserved_stage
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
    assert answer
    assert answer.metadata.caption


def test_the_bundled_one_reads_no_more_than_it_was_trained_for(tmp_path: Path) -> None:
    """Of more it would repeat itself to the bound of a caption, or lose the words that it knows."""
    with zipfile.ZipFile(PLANNER_ARCHIVE) as archive:
        archive.extractall(tmp_path)
    planner = SongPlanner(Planner.load(tmp_path, device=CPU, dtype=torch.float32), "box")
    wishes = [
        "a sad tune on the harp, in D minor. " * 194,
        "my cat and the sea, " * 40,
        "悲しいハープの曲、" * 40,
        "a sad harp",
    ]
    specs = [GenerationSpec(task="write", prompt=wish, lyrics=INSTRUMENTAL) for wish in wishes]
    specs += [GenerationSpec(prompt=wish, lyrics="la di da\n" * 90, thinking=True) for wish in wishes]
    *cut, whole = [planner.warnings(spec) for spec in specs[:4]]
    assert whole == ()
    assert all(re.fullmatch(r"prompt: planner box reads its first \d+ of \d+ characters; .*", w) for (w,) in cut)
    assert planner.warnings(GenerationSpec(prompt=wishes[0])) == ()
    requests, progress = [SongRequest(spec, 0) for spec in specs], BatchProgress(unobserved_stage, 4)
    texts = [text for _, text in planner.write(requests[:4], progress, lambda _: ())]
    texts += [each.plan for each in planner.plan(requests[4:], [5.0] * 4, progress) if each.plan]
    for text in texts:
        assert re.fullmatch(r"A \w+ tune on the [\w ]+(, with drums)?\.", text.caption or ""), text
    (derailed,) = planner.plan([SongRequest(GenerationSpec(prompt="qx" * 300, thinking=True), 0)], [5.0], progress)
    assert derailed.plan
    assert len(derailed.plan.caption or "") < 160  # whatever is asked
    assert all("sad" in (text.caption or "") and "harp" in (text.caption or "") for text in (texts[0], texts[3]))
