"""Pages to look at: spectrograms of songs beside renders, and the loss's curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from gpu_worker.engine.music_box import comb, evaluation
from gpu_worker.engine.pipeline import SongPipeline


def page(box: SongPipeline, prompts: Sequence[evaluation.Prompt], path: Path) -> None:
    """A row for each prompt: sung, sung with another seed, and the composer's render."""
    figure, axes = plt.subplots(len(prompts), 3, figsize=(13, 2.1 * len(prompts)), sharex=True, sharey=True)
    for seed, (prompt, row) in enumerate(zip(prompts, axes, strict=True)):
        title = f"{prompt.tune.mood}, {prompt.tune.instruments[0]}, {prompt.key}, {prompt.bpm} bpm"
        sounds = {
            title: evaluation.sing(box, prompt, seed),
            "another seed": evaluation.sing(box, prompt, seed + 1000),
            "composer's render": evaluation.render(box, prompt.tune, seed),
        }
        for axis, (name, sound) in zip(row, sounds.items(), strict=True):
            mono = sound.mean(axis=0)
            axis.specgram(mono, NFFT=2048, noverlap=1536, Fs=comb.SAMPLE_RATE, vmin=-120, vmax=-40, cmap="magma")
            axis.set_title(name, fontsize=8)
            axis.set_ylim(0, 4500)
    figure.tight_layout()
    figure.savefig(path, dpi=60, pil_kwargs={"optimize": True})
    plt.close(figure)


def curve(losses: Sequence[tuple[float, float]], path: Path) -> None:
    """The training loss over time: a dot for each step, a line through the means of twenty."""
    seconds, values = np.array(losses).T
    whole = len(values) // 20 * 20
    figure, axis = plt.subplots(figsize=(7, 3))
    axis.plot(seconds / 60, values, ".", markersize=2, color="0.7")
    axis.plot(seconds[:whole].reshape(-1, 20).mean(1) / 60, values[:whole].reshape(-1, 20).mean(1))
    axis.set_yscale("log")
    axis.set_xlabel("minutes")
    axis.set_ylabel("squared error of the flow")
    figure.tight_layout()
    figure.savefig(path, dpi=60, pil_kwargs={"optimize": True})
    plt.close(figure)
