"""How well songs of the bundled model follow their metadata: written by the bundled planner, or given by the user.

For each wish and seed a planned song, and one of the same wish with the planned metadata sent along, in turns. What is
heard is measured as tools/music_box/evaluation.py does, with the libraries of the extra `music-box`.
"""

from __future__ import annotations

import random
import tempfile
from typing import Any

from benchmarks.record import Figures
from gpu_worker.engine.interface import Engine, Song, SongRequest
from gpu_worker.engine.loading import load
from gpu_worker.settings import WorkerSettings
from serinette.spec import METADATA, GenerationSpec
from tests.tiny_checkpoint import unobserved
from tools.music_box import words

SONG_S = 15.0
_NOTES = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))


def measure(rounds: int = 40) -> Figures:
    """Two songs a round."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        engine = load(WorkerSettings.model_validate({"work_dir": directory, "model": "bundled", "threads": 1}))
        dice = random.Random("planned songs")  # noqa: S311  # music, not secrets
        rows = [_round(engine, _wish(dice, seed), seed) for seed in range(rounds)]
    shares: Figures = {
        found: {kind: round(sum(row[kind][found] for row in rows) / rounds, 3) for kind in ("planned", "given")}
        for found in ("key_found", "tempo_found")
    }
    for share in shares.values():
        share["planned_to_given"] = round(share["planned"] / share["given"], 3)
    return {"rounds": rounds, "duration_s": SONG_S, **shares, "rows": rows}


def _wish(dice: random.Random, number: int) -> str:
    """In English and Japanese by turns; key and tempo are left to the planner."""
    japanese = number % 2 == 1
    mood, instrument = (
        dice.choice([word for word in dice.choice(list(spellings.values())) if word.isascii() != japanese])
        for spellings in (words.MOODS, words.INSTRUMENTS)
    )
    return f"{mood}{instrument}の曲" if japanese else f"a {mood} tune on the {instrument}"


def _round(engine: Engine, wish: str, seed: int) -> Figures:
    spec = GenerationSpec(prompt=wish, lyrics="[Instrumental]", duration_s=SONG_S, seed=seed)
    planned = _song(engine, spec.model_copy(update={"thinking": True}))
    if planned.plan is None:
        raise RuntimeError("the bundled model has no planner")
    known = {name: getattr(planned.plan, name) for name in METADATA}
    given = _song(engine, spec.model_copy(update=known))
    heard = {kind: _heard(song, known) for kind, song in (("planned", planned), ("given", given))}
    return {"wish": wish, "caption": planned.plan.caption, **known, **heard}


def _song(engine: Engine, spec: GenerationSpec) -> Song:
    ((_, song),) = engine.generate([SongRequest(spec, spec.seeds[0], lm_seed=spec.lm_seeds[0])], unobserved)
    if not isinstance(song, Song):
        raise RuntimeError("text is no song")
    return song


def _heard(song: Song, known: dict[str, Any]) -> Figures:
    from tools.music_box import measuring  # noqa: PLC0415  # its libraries are another extra's

    note, sign, mode = known["key_scale"][0], known["key_scale"][1], known["key_scale"].rpartition(" ")[2]
    tonic = (_NOTES[note] + {"#": 1, "b": -1}.get(sign, 0)) % 12
    heard = measuring.measure(song.samples, tonic, mode == "minor", known["bpm"])
    return {"key_found": heard.key_found, "tempo_found": heard.tempo_found, "key": heard.key, "bpm": round(heard.bpm)}
