"""Does it do as it is told? A hundred unseen prompts, sung and measured beside the composer's own renders.

python -m gpu_worker.engine.music_box.evaluation --out docs
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from gpu_worker.engine.music_box import barrel, building, measuring, training, words
from gpu_worker.engine.music_box.barrel import Tempo
from gpu_worker.engine.music_box.composer import Tune, compose
from gpu_worker.engine.music_box.measuring import Measures, Sound
from gpu_worker.engine.pipeline import SongPipeline

_SECONDS = 15
# Of the bundled weights' training: what these asked for is no held-out prompt.
_STEPS = 1430
_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out request: words, key and tempo in a combination drawn apart from training's."""

    caption: str
    bpm: int
    tonic: int
    minor: bool
    tune: Tune

    @property
    def key(self) -> str:
        """As a spec spells it."""
        return f"{_NAMES[self.tonic]} {'minor' if self.minor else 'major'}"


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt, sung with two seeds and rendered by the composer."""

    prompt: Prompt
    sung: Measures
    rendered: Measures
    likeness: float  # of two seeds' chroma sequences
    took_s: float


def main() -> None:
    """Measure, and write the table, as JSON and Markdown, and the page of spectrograms."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--out", type=Path, default=Path("docs"))
    reader.add_argument("--weights", type=Path, default=building.WEIGHTS)
    reader.add_argument("--prompts", type=int, default=100)
    reader.add_argument("--losses", type=Path, default=Path("build/music-box/losses.json"), help="that training left")
    told = reader.parse_args()
    losses = json.loads(told.losses.read_text()) if told.losses.exists() else []
    from gpu_worker.engine.music_box import picturing  # noqa: PLC0415 - matplotlib is the evaluation's alone

    box = building.load(told.weights)
    prompts = draw(told.prompts, shown(len(losses) or _STEPS))
    rows = [measure(box, prompt, seed) for seed, prompt in enumerate(prompts)]
    told.out.mkdir(parents=True, exist_ok=True)
    table = summary(rows)
    (told.out / "music-box.json").write_text(
        json.dumps({"summary": table, "rows": [_plain(row) for row in rows]}, indent=1) + "\n"
    )
    print(markdown(table))  # noqa: T201 - a command's own output
    picturing.page(box, prompts[:6], told.out / "music-box.png")
    if losses:
        picturing.curve(losses, told.out / "music-box-loss.png")


def shown(steps: int) -> set[frozenset[str]]:
    """The combinations of mood, instrument, tempo and key that training asked for: its lessons, drawn once more."""
    return {
        frozenset(word for word in map(words.MEANINGS.__getitem__, one.meanings) if _counts(word))
        for step in range(steps)
        for one in training.lessons_of(step, training.BATCH)
    }


def _counts(word: str) -> bool:
    return word in words.MOODS or word in words.INSTRUMENTS or word.startswith(("tempo", "key"))


def draw(count: int, seen: Container[frozenset[str]] = ()) -> list[Prompt]:
    """Prompts in English and Japanese, in turn; none whose combination of meanings was `seen`."""
    dice = random.Random("held out")  # noqa: S311 - music, not secrets
    prompts: list[Prompt] = []
    while len(prompts) < count:
        mood, instrument = dice.choice(list(words.MOODS)), dice.choice(list(words.INSTRUMENTS))
        tonic, minor, bpm = dice.randrange(12), dice.random() < 0.5, dice.randint(60, 160)
        tempo = Tempo.nearest(bpm)
        if frozenset((mood, instrument, words.tempo(tempo), words.key(tonic, minor=minor))) in seen:
            continue
        tune = Tune(tonic, minor, tempo, mood, (instrument,), False, _SECONDS * barrel.FRAMES_PER_S)
        japanese = len(prompts) % 2 == 1
        spoken = [
            dice.choice([word for word in spellings if word.isascii() != japanese])
            for spellings in (words.MOODS[mood], words.INSTRUMENTS[instrument])
        ]
        caption = f"{spoken[0]}{spoken[1]}の曲" if japanese else f"a {spoken[0]} tune on the {spoken[1]}"
        prompts.append(Prompt(caption, bpm, tonic, minor, tune))
    return prompts


def measure(box: SongPipeline, prompt: Prompt, seed: int) -> Row:
    """Sing a prompt twice and render it once."""
    began = time.perf_counter()
    sung = sing(box, prompt, seed)
    took_s = time.perf_counter() - began
    other = sing(box, prompt, seed + 1000)
    rendered = render(box, prompt.tune, seed)
    asked = (prompt.tonic, prompt.minor, prompt.bpm)
    return Row(
        prompt,
        measuring.measure(sung, *asked),
        measuring.measure(rendered, *asked),
        measuring.likeness(sung, other),
        took_s,
    )


def sing(box: SongPipeline, prompt: Prompt, seed: int, seconds: float = _SECONDS) -> Sound:
    """Through the pipeline, as the engine does; [2, samples]."""
    audio = box(
        prompt=prompt.caption,
        lyrics="[Instrumental]",
        bpm=prompt.bpm,
        keyscale=prompt.key,
        timesignature="4",
        audio_duration=seconds,
        num_inference_steps=8,
        shift=3.0,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(seed),
        max_text_length=1024,
    ).audios[0]
    return np.asarray(audio.numpy(), np.float32)


@torch.no_grad()
def render(box: SongPipeline, tune: Tune, seed: int) -> Sound:
    """The composer's own tune on the same comb, at the same peak."""
    audio = box.vae.decode(torch.from_numpy(compose(tune, seed)).T[None]).sample[0].numpy()
    return np.asarray(audio * (10 ** (-1 / 20) / np.abs(audio).max()), np.float32)


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Shares and means over the prompts, for what was sung and for the renders."""
    table = {
        kind: {
            "key found": float(np.mean([one.key_found for one in measures])),
            "tempo within 4 %": float(np.mean([one.tempo_found for one in measures])),
            "tonal energy": float(np.mean([one.tonal for one in measures])),
            "spectral flatness": float(np.mean([one.flatness for one in measures])),
            "energy in key": float(np.mean([one.in_key for one in measures])),
            "silent": float(np.sum([one.silent for one in measures])),
            "clipping": float(np.sum([one.clipping for one in measures])),
        }
        for kind, measures in (("sung", [row.sung for row in rows]), ("rendered", [row.rendered for row in rows]))
    }
    table["sung"] |= {
        "two seeds' likeness, mean": float(np.mean([row.likeness for row in rows])),
        "two seeds differ (< 0.9)": float(np.mean([row.likeness < 0.9 for row in rows])),
        "seconds to sing 15 s, median": float(np.median([row.took_s for row in rows])),
    }
    return table


def markdown(table: dict[str, dict[str, float]]) -> str:
    """The summary as a table."""
    lines = ["| | sung | composer's renders |", "|---|---|---|"]
    for name, value in table["sung"].items():
        other = table["rendered"].get(name)
        lines.append(f"| {name} | {value:.3g} | {'' if other is None else f'{other:.3g}'} |")
    return "\n".join(lines)


def _plain(row: Row) -> dict[str, object]:
    return {
        "caption": row.prompt.caption,
        "bpm": row.prompt.bpm,
        "key": row.prompt.key,
        "likeness": round(row.likeness, 3),
        "took_s": round(row.took_s, 3),
        "sung": asdict(row.sung),
        "rendered": asdict(row.rendered),
    }


if __name__ == "__main__":
    main()
