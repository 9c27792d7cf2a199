"""What the trained music box plays: in key, in time, to an end; and all six tasks on a tune of the composer's."""

from typing import Any

import numpy as np
import pytest
import torch

from gpu_worker.engine.music_box import barrel, building
from gpu_worker.engine.music_box.barrel import PIN, Tempo
from gpu_worker.engine.music_box.composer import Tune, compose
from gpu_worker.engine.pipeline import SongPipeline

SECONDS = 8
TUNE = Tune(7, False, Tempo.nearest(120), "happy", ("bell",), frames=SECONDS * barrel.FRAMES_PER_S)
GRID = barrel.grid_frame(TUNE.tempo.tooth, np.arange(200))


@pytest.fixture(scope="module")
def box() -> SongPipeline:
    return building.load()


@pytest.fixture(scope="module")
def source(box: SongPipeline) -> torch.Tensor:
    with torch.no_grad():
        played: torch.Tensor = box.vae.decode(torch.from_numpy(compose(TUNE, 5)).T[None]).sample[0]
    return played


def sing(box: SongPipeline, prompt: str = "a happy tune on bells", seed: int = 0, **asked: Any) -> np.ndarray:
    """Latents, [frames, channels]."""
    torch.manual_seed(seed)
    given = {"bpm": 120, "keyscale": "G major", "audio_duration": float(SECONDS), **asked}
    answer = box(
        prompt=prompt,
        lyrics="[Instrumental]",
        timesignature="4",
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **given,
    )
    latents: np.ndarray = answer.audios[0].numpy()
    return latents


def pins(latents: np.ndarray, channels: range) -> set[tuple[int, int]]:
    frames, found = np.nonzero(latents[:, channels.start : channels.stop] > PIN / 2)
    return set(zip(frames.tolist(), found.tolist(), strict=True))


def test_a_tune_is_in_key_in_time_and_ends(box: SongPipeline) -> None:
    latents = sing(box)
    melody, accompaniment = pins(latents, barrel.MELODY), pins(latents, barrel.ACCOMPANIMENT)
    assert len(melody) > SECONDS / 2
    assert len(accompaniment) > SECONDS / 2
    notes = [(barrel.MELODY_LOW + tooth) % 12 in TUNE.scale for _, tooth in melody]
    notes += [(barrel.ACCOMPANIMENT_LOW + tooth) % 12 in TUNE.scale for _, tooth in accompaniment]
    assert np.mean(notes) > 0.85
    frames = [frame for frame, _ in melody | accompaniment]
    assert np.mean(np.isin(frames, GRID)) > 0.9
    assert max(frames) <= (SECONDS - 0.9) * barrel.FRAMES_PER_S


def test_the_words_choose_the_instrument(box: SongPipeline) -> None:
    for word, stop in zip(("オルゴール", "harp", "flute"), barrel.STOPS, strict=True):
        held = sing(box, f"calm {word}")[:, list(barrel.STOPS)].mean(axis=0)
        assert held.argmax() == stop - barrel.STOPS.start
        assert held.max() > 0.8 * PIN


def test_two_seeds_are_two_tunes(box: SongPipeline) -> None:
    one, other = (pins(sing(box, seed=seed), barrel.MELODY) for seed in (1, 2))
    assert len(one & other) < 0.7 * len(one | other)


def test_nothing_said_is_still_a_tune(box: SongPipeline) -> None:
    latents = sing(box, "", bpm=None, keyscale=None)
    frames = [frame for frame, _ in pins(latents, barrel.ACCOMPANIMENT)]
    assert len(frames) > SECONDS / 2
    assert np.mean(np.isin(frames, barrel.grid_frame(Tempo.nearest(104).tooth, np.arange(200)))) > 0.8


def test_repaint_changes_the_window_and_knows_the_rest(box: SongPipeline, source: torch.Tensor) -> None:
    painted = sing(box, task_type="repaint", src_audio=source, repainting_start=2.0, repainting_end=6.0)
    meant = compose(TUNE, 5)
    inside, outside = slice(80, 240), slice(0, 80)
    everything = range(barrel.DRUMS.stop)
    assert len(pins(painted[inside], everything) ^ pins(meant[inside], everything)) > 3
    kept = pins(meant[outside], everything)
    assert len(kept & pins(painted[outside], everything)) > 0.6 * len(kept)
    assert len(pins(painted[inside], everything)) > 8


def test_a_cover_keeps_the_notes_and_changes_the_instrument(box: SongPipeline, source: torch.Tensor) -> None:
    covered = sing(box, "a happy flute", task_type="cover", src_audio=source, audio_duration=None)
    meant = pins(compose(TUNE, 5), barrel.MELODY)
    assert len(meant & pins(covered, barrel.MELODY)) > 0.6 * len(meant)
    assert covered[:, list(barrel.STOPS)].mean(axis=0).argmax() == 2


def test_extract_takes_one_track(box: SongPipeline, source: torch.Tensor) -> None:
    drums = sing(box, task_type="extract", track_name="drums", src_audio=source, audio_duration=None)
    meant = pins(compose(TUNE, 5), barrel.DRUMS)
    assert len(meant & pins(drums, barrel.DRUMS)) > 0.6 * len(meant)
    assert len(pins(drums, barrel.MELODY)) <= 2


def test_lego_and_complete_add_a_track(box: SongPipeline) -> None:
    meant = compose(TUNE, 5)
    melody = meant.copy()
    melody[:, barrel.ACCOMPANIMENT.start : barrel.DRUMS.stop] = 0
    with torch.no_grad():
        alone = box.vae.decode(torch.from_numpy(melody).T[None]).sample[0]
    track = sing(box, task_type="lego", track_name="bass", src_audio=alone, audio_duration=None)
    assert len(pins(track, barrel.ACCOMPANIMENT)) > 3
    whole = sing(box, task_type="complete", complete_track_classes=["bass"], src_audio=alone, audio_duration=None)
    assert len(pins(whole, barrel.ACCOMPANIMENT)) > 3
    assert len(pins(melody, barrel.MELODY) & pins(whole, barrel.MELODY)) > 0.5 * len(pins(melody, barrel.MELODY))
