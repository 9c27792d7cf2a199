"""What the bundled checkpoint plays: in key, in time, to an end, all six tasks; and that a pin sounds as it should."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AceStepPipeline

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
    everything = range(barrel.DRUMS.stop)
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
    melody[:, barrel.ACCOMPANIMENT.start : barrel.DRUMS.stop] = 0
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


@pytest.mark.parametrize(("instrument", "octave"), [("bell", 1), ("pluck", 0), ("pipe", 0)])
@pytest.mark.parametrize("tooth", [0, 9, 13])
def test_a_pin_sounds_in_its_frame_at_its_pitch(box: AceStepPipeline, instrument: str, octave: int, tooth: int) -> None:
    sheet = blank()
    sheet[40, tooth] = PIN
    sheet[:, barrel.STOPS[barrel.INSTRUMENTS.index(instrument)]] = PIN
    sound = played(box, sheet)
    assert sound.shape == (2, FRAMES * 600)
    loud = np.flatnonzero(np.abs(sound).max(axis=0) > 0.02 * np.abs(sound).max())
    assert 40 * 600 - 480 <= loud[0] <= 40 * 600 + 240
    assert 0.2 < (loud[-1] - loud[0]) / comb.SAMPLE_RATE < 0.7
    spectrum = np.abs(np.fft.rfft(sound.mean(axis=0), 1 << 18))
    pitch = spectrum.argmax() * comb.SAMPLE_RATE / (1 << 18)
    assert pitch == pytest.approx(comb.hertz(barrel.MELODY_LOW + tooth + 12 * octave), rel=0.01)


def test_without_a_pin_or_without_a_stop_there_is_silence(box: AceStepPipeline) -> None:
    stop, pins = blank(), blank()
    stop[:, list(barrel.STOPS)] = PIN
    pins[::10, 3] = PIN
    for sheet in (blank(), stop, pins):
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
    convolution = box.vae.encoder.block[1].conv1
    weight = torch._weight_norm(convolution.weight_v, convolution.weight_g).detach()
    groups = weight.view(-1, barrel.CHANNELS, *weight.shape[1:])[:3]
    inverse = groups[:, :, : codec.EAR_FEATURES].permute(0, 3, 1, 2)
    again = packing.pipeline(trained, inverse)
    for name, module in again.components.items():
        if isinstance(module, torch.nn.Module):
            for key, tensor in module.state_dict().items():
                assert torch.allclose(tensor, getattr(box, name).state_dict()[key], atol=1e-6), f"{name}.{key}"
    assert again.tokenizer.get_vocab() == box.tokenizer.get_vocab()
