"""What the bundled checkpoint plays: in key, in time, to an end, all six tasks; that it sounds like several instruments
that fade; that it says which words it does not know; and that a pin sounds as it should.
"""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AceStepPipeline

from gpu_worker.engine.ace_step.pipeline import SongPipeline
from gpu_worker.engine.ace_step.tasks import to_peak
from serinette.media.encoding import measured_lufs
from serinette.spec import INSTRUMENTAL
from tools.music_box import barrel, codec, comb, model, packing, words
from tools.music_box.barrel import PIN, Tempo
from tools.music_box.composer import Tune, compose

SECONDS = 8
FRAMES = 80
TUNE = Tune(7, False, Tempo.nearest(120), "happy", ("bell",), frames=SECONDS * barrel.FRAMES_PER_S)
GRID = barrel.grid_frame(TUNE.tempo.tooth, np.arange(200))


@pytest.fixture(scope="module")
def box() -> AceStepPipeline:
    return packing.load()


@pytest.fixture(scope="module")
def source(box: AceStepPipeline) -> torch.Tensor:
    with torch.no_grad():
        played: torch.Tensor = box.vae.decode(torch.from_numpy(compose(TUNE, 5)).T[None]).sample[0]
    return played


def generate(box: AceStepPipeline, prompt: str = "a happy tune on bells", seed: int = 0, **asked: Any) -> np.ndarray:
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


def test_a_tune_is_in_key_in_time_and_ends(box: AceStepPipeline) -> None:
    latents = generate(box)
    melody, accompaniment = pins(latents, barrel.MELODY), pins(latents, barrel.ACCOMPANIMENT)
    assert len(melody) > SECONDS / 2
    assert len(accompaniment) > SECONDS / 2
    notes = [(barrel.MELODY_LOW + tooth) % 12 in TUNE.scale for _, tooth in melody]
    notes += [(barrel.ACCOMPANIMENT_LOW + tooth) % 12 in TUNE.scale for _, tooth in accompaniment]
    assert np.mean(notes) > 0.85
    frames = [frame for frame, _ in melody | accompaniment]
    assert np.mean(np.isin(frames, GRID)) > 0.9
    assert max(frames) <= (SECONDS - 0.9) * barrel.FRAMES_PER_S


def test_the_words_choose_the_instrument(box: AceStepPipeline) -> None:
    for word, stop in zip(("オルゴール", "harp", "flute"), barrel.STOPS, strict=True):
        held = generate(box, f"calm {word}")[:, list(barrel.STOPS)].mean(axis=0)
        assert held.argmax() == stop - barrel.STOPS.start
        assert held.max() > 0.8 * PIN


def test_the_first_song_is_worth_keeping(box: AceStepPipeline) -> None:
    """That of `make demo`, for 8 s: melody, chords, bass and drums, in stereo, level, without clicks, to an end."""
    latents = generate(box, "dance music box with drums", bpm=None, keyscale=None)
    voices = [pins(latents, channels) for channels in (barrel.MELODY, barrel.ACCOMPANIMENT, barrel.DRUMS)]
    assert min(map(len, voices)) > SECONDS / 2
    bass = latents[:, barrel.BASS] > PIN / 2
    assert (latents[bass][:, list(barrel.ACCOMPANIMENT)].max(axis=1) > PIN / 2).sum() >= 3  # else it has no pitch
    with torch.no_grad():
        sound = to_peak(box.vae.decode(torch.from_numpy(latents).T[None]).sample[0]).numpy()
    assert -20 < measured_lufs(sound, comb.SAMPLE_RATE) < -13
    left, right = sound
    side_db = 10 * np.log10(np.square(left - right).sum() / np.square(left + right).sum())
    assert -16 < side_db < -6
    assert np.abs(np.diff(sound, axis=1)).max() < 0.3
    assert np.abs(sound[:, -comb.SAMPLE_RATE // 10 :]).max() < 0.01


def test_sad_leans_minor_and_slow_leans_slow(box: AceStepPipeline) -> None:
    sad = pins(generate(box, "a sad harp", keyscale=None), barrel.ACCOMPANIMENT)
    last = max(frame for frame, _ in sad)
    assert {(barrel.ACCOMPANIMENT_LOW + tooth) % 12 for frame, tooth in sad if frame == last} == {9}
    slow = [frame for frame, _ in pins(generate(box, "a slow harp", bpm=None), barrel.ACCOMPANIMENT)]
    for bpm, least, most in ((72, 0.8, 1.0), (104, 0.0, 0.5)):
        assert least <= np.mean(np.isin(slow, barrel.grid_frame(Tempo.nearest(bpm).tooth, np.arange(200)))) <= most
    asked = pins(generate(box, "a slow harp"), barrel.ACCOMPANIMENT)
    assert np.mean([frame in GRID for frame, _ in asked]) > 0.8  # what the metadata say counts


def test_words_that_it_does_not_know_are_named(box: AceStepPipeline) -> None:
    metadata: dict[str, object] = {"bpm": 120, "keyscale": None, "timesignature": None, "audio_duration": 8.0}
    fit = SongPipeline(**box.components).fit
    for prompt, lyrics, named in (
        ("jazz piano, smooth", INSTRUMENTAL, ['"jazz"; it knows moods (happy, ']),
        ("dance music box with drums", INSTRUMENTAL, []),
        ("calm harp", "la la", ["lyrics: ignored"]),
    ):
        kept, warnings = fit(prompt, lyrics, "en", metadata, "")
        assert kept == prompt
        assert len(warnings) == len(named)
        assert all(words in warning for words, warning in zip(named, warnings, strict=True))


def test_two_seeds_are_two_tunes(box: AceStepPipeline) -> None:
    one, other = (pins(generate(box, seed=seed), barrel.MELODY) for seed in (1, 2))
    assert len(one & other) < 0.7 * len(one | other)


def test_nothing_said_is_still_a_tune(box: AceStepPipeline) -> None:
    latents = generate(box, "", bpm=None, keyscale=None)
    frames = [frame for frame, _ in pins(latents, barrel.ACCOMPANIMENT)]
    assert len(frames) > SECONDS / 2
    assert np.mean(np.isin(frames, barrel.grid_frame(Tempo.nearest(104).tooth, np.arange(200)))) > 0.8


def test_repaint_changes_the_window_and_knows_the_rest(box: AceStepPipeline, source: torch.Tensor) -> None:
    painted = generate(box, task_type="repaint", src_audio=source, repainting_start=2.0, repainting_end=6.0)
    meant = compose(TUNE, 5)
    inside, outside = slice(80, 240), slice(0, 80)
    everything = range(barrel.STOPS.start)
    assert len(pins(painted[inside], everything) ^ pins(meant[inside], everything)) > 3
    kept = pins(meant[outside], everything)
    assert len(kept & pins(painted[outside], everything)) > 0.6 * len(kept)
    assert len(pins(painted[inside], everything)) > 8


def test_a_cover_keeps_the_notes_and_changes_the_instrument(box: AceStepPipeline, source: torch.Tensor) -> None:
    covered = generate(box, "a happy flute", task_type="cover", src_audio=source, audio_duration=None)
    meant = pins(compose(TUNE, 5), barrel.MELODY)
    assert len(meant & pins(covered, barrel.MELODY)) > 0.6 * len(meant)
    assert covered[:, list(barrel.STOPS)].mean(axis=0).argmax() == 2


def test_extract_takes_one_track(box: AceStepPipeline, source: torch.Tensor) -> None:
    drums = generate(box, task_type="extract", track_name="drums", src_audio=source, audio_duration=None)
    meant = pins(compose(TUNE, 5), barrel.DRUMS)
    assert len(meant & pins(drums, barrel.DRUMS)) > 0.6 * len(meant)
    assert len(pins(drums, barrel.MELODY)) <= 2


def test_lego_and_complete_add_a_track(box: AceStepPipeline) -> None:
    meant = compose(TUNE, 5)
    melody = meant.copy()
    melody[:, barrel.ACCOMPANIMENT.start : barrel.STOPS.start] = 0
    with torch.no_grad():
        alone = box.vae.decode(torch.from_numpy(melody).T[None]).sample[0]
    track = generate(box, task_type="lego", track_name="bass", src_audio=alone, audio_duration=None)
    assert len(pins(track, barrel.ACCOMPANIMENT)) > 3
    whole = generate(box, task_type="complete", complete_track_classes=["bass"], src_audio=alone, audio_duration=None)
    assert len(pins(whole, barrel.ACCOMPANIMENT)) > 3
    assert len(pins(melody, barrel.MELODY) & pins(whole, barrel.MELODY)) > 0.5 * len(pins(melody, barrel.MELODY))


def played(box: AceStepPipeline, sheet: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        sound: np.ndarray = box.vae.decode(torch.from_numpy(sheet.astype(np.float32)).T[None]).sample[0].numpy()
    return sound


def blank() -> np.ndarray:
    return np.zeros((FRAMES, barrel.CHANNELS), np.float32)


@pytest.mark.parametrize("instrument", barrel.INSTRUMENTS)
@pytest.mark.parametrize("tooth", [0, 9, 13])
def test_a_pin_sounds_in_its_frame_at_its_pitch_and_fades(box: AceStepPipeline, instrument: str, tooth: int) -> None:
    sheet = blank()
    sheet[40, tooth] = PIN
    sheet[:, barrel.STOPS[barrel.INSTRUMENTS.index(instrument)]] = PIN
    sound = played(box, sheet)
    assert sound.shape == (2, FRAMES * 600)
    loud = np.flatnonzero(np.abs(sound).max(axis=0) > 0.02 * np.abs(sound).max())
    assert 40 * 600 - 480 <= loud[0] <= 40 * 600 + 240
    assert 0.5 < (loud[-1] - loud[0]) / comb.SAMPLE_RATE < 0.85
    # It is not cut: no tenth of a second is more than 15 dB under the one before.
    tenths = [np.abs(sound[:, 40 * 600 + tenth * 2400 :][:, :2400]).max() for tenth in range(8)]
    assert all(later > 0.17 * earlier for earlier, later in itertools.pairwise(tenths))
    assert pitch_of(sound) == pytest.approx(comb.hertz(barrel.MELODY_LOW + tooth), rel=0.01)


def pitch_of(sound: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(sound.mean(axis=0), 1 << 18))
    return float(spectrum.argmax() * comb.SAMPLE_RATE / (1 << 18))


@pytest.mark.parametrize("tooth", [0, 8, 9, 11])
def test_the_bass_sounds_an_octave_or_two_below_its_chord(box: AceStepPipeline, tooth: int) -> None:
    sheet = blank()
    sheet[40, [barrel.ACCOMPANIMENT[tooth], barrel.BASS]] = PIN
    pitch = pitch_of(played(box, sheet))
    notes = [comb.hertz(note) for note in range(barrel.BASS_LOW, barrel.BASS_LOW + 12)]
    nearest = min(range(12), key=lambda note: abs(notes[note] - pitch))
    assert (barrel.BASS_LOW + nearest - barrel.ACCOMPANIMENT_LOW) % 12 == tooth
    assert pitch == pytest.approx(notes[nearest], rel=0.01)


def test_without_a_pin_or_without_a_stop_there_is_silence(box: AceStepPipeline) -> None:
    stop, pins, bass = blank(), blank(), blank()
    stop[:, list(barrel.STOPS)] = PIN
    pins[::10, 3] = PIN
    bass[::10, barrel.BASS] = PIN
    for sheet in (blank(), stop, pins, bass):
        assert np.abs(played(box, sheet)).max() < 1e-3


def test_pins_that_stand_a_little_crooked_sound_alike(box: AceStepPipeline) -> None:
    sheet = compose(Tune(0, False, Tempo.nearest(120), "happy", frames=FRAMES * 3), 0)
    straight = played(box, sheet)
    crooked = played(box, sheet + np.random.default_rng(0).normal(0, 0.02 * PIN, sheet.shape))
    assert np.square(crooked - straight).mean() < 0.02 * np.square(straight).mean()


def test_what_is_played_is_encoded_again(box: AceStepPipeline) -> None:
    sheet = compose(Tune(2, False, Tempo.nearest(110), "happy", ("pluck",), frames=320), 7)
    with torch.no_grad():
        encoded = box.vae.encode(torch.from_numpy(played(box, sheet))[None]).latent_dist.mode()[0].T.numpy()
    meant = codec.audible(sheet)
    assert encoded.shape == meant.shape
    assert np.corrcoef(encoded.ravel(), meant.ravel())[0, 1] > 0.9


def test_the_tools_pack_what_is_bundled(box: AceStepPipeline) -> None:
    parts = {name: getattr(box, name) for name in ("text_encoder", "condition_encoder", "transformer")}
    trained = model.Parts(**parts).trained()
    first = {meaning: token for token, meaning in reversed(list(enumerate(words.meaning_of_tokens())))}
    table = trained["text_encoder.embed_tokens.weight"]
    trained["text_encoder.embed_tokens.weight"] = torch.stack([table[first[place]] for place in sorted(first)])
    convolution = box.vae.encoder.block[2].conv1
    weight = torch._weight_norm(convolution.weight_v, convolution.weight_g).detach()
    groups = weight.view(-1, barrel.CHANNELS, *weight.shape[1:])[:3]
    inverse = groups[:, :, : codec.EAR_FEATURES].permute(0, 3, 1, 2)
    again = packing.pipeline(trained, inverse)
    for name, module in again.components.items():
        if isinstance(module, torch.nn.Module):
            for key, tensor in module.state_dict().items():
                assert torch.allclose(tensor, getattr(box, name).state_dict()[key], atol=1e-6), f"{name}.{key}"
    assert again.tokenizer.get_vocab() == box.tokenizer.get_vocab()
