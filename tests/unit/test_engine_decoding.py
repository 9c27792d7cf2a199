"""Songs are decoded window by window: what is decoded, what of it is kept, and that it is inaudible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderOobleck

from gpu_worker.engine.ace_step.pipeline import SongPipeline
from gpu_worker.engine.memory.windows import OVERLAP_FRAMES, Windows, calls_of, decode, overlap_of, windows_of
from tools.music_box import codec
from tools.music_box.barrel import Tempo
from tools.music_box.composer import Tune, compose

CARD = Windows(256, 4, fixed=True)
LONG = Windows(64, 2, fixed=True, overlap_frames=40)
SMALL = Windows(512, 1, fixed=False)
# 2,147,483,648 elements is what a tensor's index of 32 bits holds; the widest of the decoder's has 128 channels.
MOST_ELEMENTS, WIDEST_CHANNELS, HOP = 2**31, 128, 1920


@pytest.mark.parametrize("windows", [CARD, SMALL, LONG])
@pytest.mark.parametrize("frames", [1, 2, 272, 287, 288, 289, 300, 375, 529, 544, 545, 1500, 10_000, 15_000])
def test_every_frame_is_kept_once_and_has_its_neighbours(frames: int, windows: Windows) -> None:
    parts = list(windows_of(0, frames, windows))
    assert [part.kept_from for part in parts] == [0, *(part.kept_to for part in parts[:-1])]
    assert parts[-1].kept_to == frames
    assert [part.last for part in parts] == [*(False for _ in parts[1:]), True]
    for part in parts:
        assert part.start == 0 or part.kept_from - part.start >= windows.overlap_frames
        assert part.end == frames or part.end - part.kept_to >= windows.overlap_frames
        assert part.frames <= windows.frames
        if windows.fixed and frames >= windows.frames:
            assert part.frames == windows.frames


@pytest.mark.parametrize("duration_s", [60, 349, 400, 600])
def test_no_call_passes_what_an_index_holds(duration_s: int) -> None:
    frames = duration_s * 25
    widest = max(sum(window.frames for window in call) for call in calls_of([frames] * 8, Windows(256, 16, fixed=True)))
    assert widest <= 8192
    assert widest * HOP * WIDEST_CHANNELS < MOST_ELEMENTS


def test_songs_share_calls_and_short_ones_have_their_own() -> None:
    calls = list(calls_of([600, 100, 100, 700, 288], CARD))
    assert [[window.song for window in call] for call in calls] == [[0, 0, 0], [1, 2], [3, 3, 3, 4]]
    assert all(len({window.frames for window in call}) == 1 for call in calls)


@pytest.fixture(scope="module")
def pipe(tiny_turbo: Path) -> SongPipeline:
    loaded: SongPipeline = SongPipeline.from_pretrained(tiny_turbo)
    return loaded


def test_windows_give_what_the_whole_gives(pipe: SongPipeline) -> None:
    frames = (600, 90, 340)
    latents = torch.randn(len(frames), max(frames), 4, generator=torch.Generator().manual_seed(1))
    decoder = pipe.vae.decoder
    with torch.no_grad():
        wholes = [decoder(latents[song : song + 1, :own].transpose(1, 2))[0] for song, own in enumerate(frames)]
        for windows in (CARD, Windows(64, 3, fixed=True), SMALL):
            given = dict(decode(decoder, latents, frames, windows, lambda _: True))
            for song, whole in enumerate(wholes):
                assert given[song].shape == whole.shape
                assert float((given[song] - whole).abs().max()) <= 1e-5 * float(whole.abs().max())


def test_notes_that_ring_past_a_window_ring_on() -> None:
    """The bundled decoder looks further around than ACE-Step's: so far as a note rings."""
    vae = codec.autoencoder()
    ratios = vae.config.downsampling_ratios
    assert overlap_of(ratios) > overlap_of([2, 4, 4, 6, 10]) == OVERLAP_FRAMES
    latents = torch.from_numpy(compose(Tune(0, False, Tempo.nearest(90), "calm", ("bell",), frames=300), 1))[None]
    with torch.no_grad():
        whole = vae.decoder(latents.transpose(1, 2))[0]
        windows = Windows(64, 2, fixed=True, overlap_frames=overlap_of(ratios))
        parted = dict(decode(vae.decoder, latents, (300,), windows, lambda _: True))[0]
    assert float((parted - whole).abs().max()) <= 1e-5 * float(whole.abs().max())


def test_windows_in_half_precision_are_as_far_from_the_truth_as_the_whole(pipe: SongPipeline, tiny_turbo: Path) -> None:
    latents = torch.randn(1, 100, 4, generator=torch.Generator().manual_seed(1))
    exact = pipe.vae.decoder
    coarse = AutoencoderOobleck.from_pretrained(tiny_turbo / "vae", dtype=torch.bfloat16).decoder
    with torch.no_grad():
        truth = exact(latents.transpose(1, 2))[0]
        whole = coarse(latents.bfloat16().transpose(1, 2))[0].float()
        parted = dict(decode(coarse, latents.bfloat16(), [100], Windows(40, 2, fixed=True), lambda _: True))[0]
    rms = float(truth.square().mean().sqrt())
    whole_error, parted_error, apart = (
        float((one - other).square().mean().sqrt()) / rms
        for one, other in ((whole, truth), (parted, truth), (parted, whole))
    )
    assert apart <= 0.01
    assert parted_error <= 1.1 * whole_error


def test_songs_come_in_order_and_the_unwanted_not_at_all(pipe: SongPipeline) -> None:
    asked: list[int] = []

    def decoder(given: torch.Tensor) -> torch.Tensor:
        asked.append(len(given))
        return torch.zeros(len(given), 2, given.shape[-1] * HOP)

    songs = [song for song, _ in decode(decoder, torch.zeros(3, 600, 4), (600, 600, 600), CARD, lambda song: song != 1)]
    assert songs == [0, 2]
    assert sum(asked) == 6
