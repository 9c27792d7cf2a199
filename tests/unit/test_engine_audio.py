"""Level and the seam of a repainted window."""

from __future__ import annotations

import math

import pytest
import torch

from gpu_worker.engine.ace_step.tasks import Window, paste, peak_of, to_peak

RATE = 48_000


def tone(hertz: float, seconds: float, level: float = 0.1) -> torch.Tensor:
    """Stereo [2, frames]."""
    wave = level * torch.sin(2 * math.pi * hertz / RATE * torch.arange(round(seconds * RATE)))
    return torch.stack([wave, wave])


class TestMixing:
    def test_the_peak_is_one_decibel_below_full_scale(self) -> None:
        assert float(to_peak(tone(440, 1, level=3.0)).abs().max()) == pytest.approx(10 ** (-1 / 20))
        assert not bool(to_peak(torch.zeros(2, 100)).any())

    @pytest.mark.parametrize("worst", [math.nan, math.inf, -math.inf])
    def test_one_sample_that_is_not_finite_is_seen_in_the_peak(self, worst: float) -> None:
        samples = tone(440, 1)
        assert float(peak_of(-samples)) == float(samples.abs().max())
        samples[1, 7] = worst
        assert not math.isfinite(float(peak_of(samples)))

    @pytest.mark.parametrize(("start_s", "end_s"), [(1.0, 2.0), (0.0, 2.0), (1.0, 3.0), (0.0, 3.0), (1.0, 1.01)])
    def test_outside_the_window_the_source_stays_to_the_sample(self, start_s: float, end_s: float) -> None:
        source, generated = tone(440, 3), tone(660, 3.04, level=0.2)
        mixed = paste(source, generated, Window(start_s, end_s), RATE)
        start, end = round(start_s * RATE), round(end_s * RATE)
        assert mixed.shape == source.shape
        assert torch.equal(mixed[:, :start], source[:, :start])
        assert torch.equal(mixed[:, end:], source[:, end:])
        assert not torch.equal(mixed[:, start:end], source[:, start:end])

    def test_inside_the_window_the_song_stands_alone(self) -> None:
        source, generated = tone(440, 3), tone(660, 3, level=0.2)
        mixed = paste(source, generated, Window(1.0, 2.0), RATE)
        inside = slice(round(1.02 * RATE), round(1.98 * RATE))
        assert torch.allclose(mixed[:, inside], generated[:, inside], atol=1e-7)
        # At the edges, no jump is larger than those of the two tones themselves.
        assert float(mixed.diff().abs().max()) <= 1.1 * float(generated.diff().abs().max())

    def test_a_window_at_the_songs_ends_has_no_fade_there(self) -> None:
        source, generated = tone(440, 3), tone(660, 3, level=0.2)
        assert torch.equal(paste(source, generated, Window(0.0, 3.0), RATE), generated)

    def test_a_window_generated_too_loud_is_brought_down(self) -> None:
        mixed = paste(tone(440, 3), tone(660, 3, level=4.0), Window(1.0, 2.0), RATE)
        assert float(mixed.abs().max()) == pytest.approx(1.0, abs=1e-3)

    def test_a_window_of_nothing_changes_nothing(self) -> None:
        source = tone(440, 1)
        assert torch.equal(paste(source, tone(660, 1), Window(0.5, 0.500001), RATE), source)

    @pytest.mark.parametrize("before", [True, False])
    def test_a_song_that_is_continued_keeps_its_own_and_has_no_jump_at_the_joint(self, before: bool) -> None:
        own, generated = tone(440, 1, level=0.3), tone(450, 3, level=0.3)
        first = 2 * RATE if before else 0
        source = torch.zeros(2, 3 * RATE)
        source[:, first : first + RATE] = own
        window = Window(0.0, 2.0) if before else Window(1.0, 3.0)
        mixed = paste(source, generated, window, RATE, (first, first + RATE))
        assert torch.equal(mixed[:, first : first + RATE], own)
        assert float(mixed.diff().abs().max()) <= 1.1 * float(generated.diff().abs().max())
        far = slice(0, RATE) if before else slice(2 * RATE, 3 * RATE)
        assert torch.allclose(mixed[:, far], generated[:, far], atol=1e-7)

    def test_a_window_that_ends_in_what_is_kept_is_faded_within_it(self) -> None:
        source = torch.cat([tone(440, 1), torch.zeros(2, RATE)], dim=1)
        mixed = paste(source, tone(450, 2), Window(0.999, 2.0), RATE, (0, RATE))
        assert float(mixed[:, RATE : RATE + 480].abs().max()) > 0.09, "no dip behind the joint"
