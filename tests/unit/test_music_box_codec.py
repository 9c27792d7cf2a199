"""The comb: a pin sounds when and as high as it should, and what is played is heard back."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gpu_worker.engine.music_box import barrel, building, codec, comb, ear
from gpu_worker.engine.music_box.barrel import PIN
from gpu_worker.engine.music_box.composer import Tune, compose
from gpu_worker.engine.music_box.pinning import pinned

FRAMES = 80


@pytest.fixture(scope="module")
def deaf() -> Any:
    return codec.autoencoder()


def played(vae: Any, sheet: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        sound: np.ndarray = vae.decode(torch.from_numpy(sheet.astype(np.float32)).T[None]).sample[0].numpy()
    return sound


def blank() -> np.ndarray:
    return np.zeros((FRAMES, barrel.CHANNELS), np.float32)


@pytest.mark.parametrize(("instrument", "octave"), [("bell", 1), ("pluck", 0), ("pipe", 0)])
@pytest.mark.parametrize("tooth", [0, 9, 13])
def test_a_pin_sounds_in_its_frame_at_its_pitch(deaf: Any, instrument: str, octave: int, tooth: int) -> None:
    sheet = blank()
    sheet[40, tooth] = PIN
    sheet[:, barrel.STOPS[barrel.INSTRUMENTS.index(instrument)]] = PIN
    sound = played(deaf, sheet)
    assert sound.shape == (2, FRAMES * 600)
    loud = np.flatnonzero(np.abs(sound).max(axis=0) > 0.02 * np.abs(sound).max())
    assert 40 * 600 - 480 <= loud[0] <= 40 * 600 + 240
    assert 0.2 < (loud[-1] - loud[0]) / comb.SAMPLE_RATE < 0.7
    spectrum = np.abs(np.fft.rfft(sound.mean(axis=0), 1 << 18))
    pitch = spectrum.argmax() * comb.SAMPLE_RATE / (1 << 18)
    assert pitch == pytest.approx(comb.hertz(barrel.MELODY_LOW + tooth + 12 * octave), rel=0.01)


def test_without_a_pin_or_without_a_stop_there_is_silence(deaf: Any) -> None:
    stop, pins = blank(), blank()
    stop[:, list(barrel.STOPS)] = PIN
    pins[::10, 3] = PIN
    for sheet in (blank(), stop, pins):
        assert np.abs(played(deaf, sheet)).max() < 1e-3


def test_pins_that_stand_a_little_crooked_sound_alike(deaf: Any) -> None:
    sheet = compose(Tune(0, False, barrel.Tempo.nearest(120), "happy", frames=FRAMES * 3), 0)
    straight = played(deaf, sheet)
    crooked = played(deaf, sheet + np.random.default_rng(0).normal(0, 0.02 * PIN, sheet.shape))
    assert np.square(crooked - straight).mean() < 0.02 * np.square(straight).mean()


def test_what_is_played_is_heard_back() -> None:
    vae = codec.autoencoder(load_file(building.WEIGHTS)["ear"].float())
    sheet = compose(Tune(2, False, barrel.Tempo.nearest(110), "happy", ("pluck",), frames=320), 7)
    with torch.no_grad():
        heard = vae.encode(torch.from_numpy(played(vae, sheet))[None]).latent_dist.mode()[0].T.numpy()
    meant = ear.audible(sheet)
    assert heard.shape == meant.shape
    assert np.corrcoef(heard.ravel(), meant.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("level", [0.4, 1.0, 1.8])
def test_a_recording_at_any_level_is_the_sheet_it_was_played_from(level: float) -> None:
    vae = codec.autoencoder(load_file(building.WEIGHTS)["ear"].float())
    tune = Tune(2, False, barrel.Tempo.nearest(110), "happy", ("pipe",), drums=True, frames=FRAMES * 3)
    sheet = torch.from_numpy(compose(tune, 4))
    with torch.no_grad():
        latents = vae.encode(level * vae.decode(sheet.T[None]).sample).latent_dist.mode()[0].T
    told = pinned(latents)
    assert set(told.flatten().tolist()) == {0.0, PIN}
    both, either = (told * sheet > 0).sum(), (told + sheet > 0).sum()
    assert both / either > 0.95
    assert not pinned(torch.zeros(8, barrel.CHANNELS)).any()
