"""The real pipeline, small: every task, the same bits again, a cancel within a step, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AceStepPipeline

from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.interface import Song, SongRequest
from gpu_worker.wire import Samples
from serinette.errors import Canceled, EngineCrashed, EngineOutOfMemory, InvalidOutput, SerinetteError, Unsupported
from serinette.job import Stage
from serinette.spec import GenerationSpec
from tests.tiny_checkpoint import engine_of

RATE = 48_000
QUICK = {"duration_s": 1.0, "steps": 2}
# With the template longer than the 256 tokens that diffusers keeps.
CAPTION = "a slow piano ballad in a small room, brushes on the snare, upright bass, warm tape, " * 2

Reported = tuple[Stage, int | None, int | None]


class Observer:
    """Remembers what it is reported; gives `places` up once `gives_up` says so."""

    def __init__(
        self, gives_up: Callable[[list[Reported]], bool] = lambda _: False, places: frozenset[int] = frozenset({0})
    ):
        self.reported: list[Reported] = []
        self._gives_up = gives_up
        self._places = places
        self._given_up: frozenset[int] = frozenset()

    def __call__(self, stage: Stage, step: int | None, steps: int | None) -> frozenset[int]:
        self.reported.append((stage, step, steps))
        if self._gives_up(self.reported):
            self._given_up = self._places
        return self._given_up


@pytest.fixture(scope="module")
def turbo(tiny_turbo: Path) -> AceStepEngine:
    return engine_of(tiny_turbo)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> AceStepEngine:
    return engine_of(tiny_base)


@pytest.fixture(scope="module")
def source() -> Samples:
    """Stereo, 1.51 s: not a whole number of latent frames."""
    wave = 0.3 * np.sin(np.arange(round(1.51 * RATE)) / 20)
    return np.stack([wave, 0.5 * wave]).astype(np.float32)


def generate(engine: AceStepEngine, seed: int = 1, source: Samples | None = None, **asked: Any) -> Song:
    request = SongRequest(GenerationSpec(**{**QUICK, **asked}), seed, source)
    (song,) = engine.generate_all([request], Observer())
    assert song is not None
    return song


def same(one: Song, other: Song) -> bool:
    return np.array_equal(one.samples, other.samples)


class TestText2Music:
    def test_a_song(self, turbo: AceStepEngine) -> None:
        observer = Observer()
        (song,) = turbo.generate_all([SongRequest(GenerationSpec(prompt="jazz", duration_s=1.01), 5)], observer)
        assert song is not None
        assert (song.sample_rate, song.seed, song.warnings) == (RATE, 5, ())
        assert song.samples.shape == (2, round(1.01 * RATE))
        assert song.samples.dtype == np.float32
        assert np.abs(song.samples).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
        steps = [(Stage.DENOISING, step, 8) for step in range(1, 9)]
        assert list(dict.fromkeys(observer.reported)) == [
            (Stage.CONDITIONING, None, None),
            *steps,
            (Stage.DECODING, None, None),
        ]

    def test_it_is_the_stock_pipelines(self, turbo: AceStepEngine, tiny_turbo: Path) -> None:
        stock = AceStepPipeline.from_pretrained(tiny_turbo)
        stock.set_progress_bar_config(disable=True)
        arguments: dict[str, Any] = {"num_inference_steps": 2, "shift": 3.0, "guidance_scale": 1.0, "bpm": 90}
        expected = stock(
            "jazz", "la", 1.0, generator=torch.Generator().manual_seed(1), max_text_length=1024, **arguments
        ).audios[0]
        song = generate(turbo, prompt="jazz", lyrics="la", bpm=90)
        assert np.abs(song.samples - expected.numpy()).max() < 1e-5

    def test_a_seed_is_a_song(self, turbo: AceStepEngine) -> None:
        assert same(generate(turbo, seed=1), generate(turbo, seed=1))
        assert not same(generate(turbo, seed=1), generate(turbo, seed=2))
        assert np.isfinite(generate(turbo, seed=2**63 + 6).samples).all()

    @pytest.mark.parametrize(
        "asked",
        [
            {"prompt": "rock"},
            {"lyrics": "words"},
            {"lyrics": "words", "vocal_language": "ja"},
            {"bpm": 180},
            {"key_scale": "A minor"},
            {"time_signature": "3"},
            {"steps": 4},
            {"shift": 1.0},
            {"timesteps": (1.0, 0.5, 0.1)},
            {"audio_codes": "<|audio_code_3|>" * 5, "duration_s": 60},
        ],
    )
    def test_what_is_asked_has_an_effect(self, turbo: AceStepEngine, asked: dict[str, Any]) -> None:
        plain = generate(turbo, prompt=CAPTION)
        other = generate(turbo, **{"prompt": CAPTION, **asked})
        assert other.samples.shape == plain.samples.shape
        assert not same(other, plain)

    def test_a_caption_too_long_is_cut_before_bpm_is(self, turbo: AceStepEngine) -> None:
        slow, fast = (generate(turbo, prompt="é" * 3_000, bpm=bpm) for bpm in (60, 180))
        assert not same(slow, fast)
        (warning,) = slow.warnings
        assert warning.startswith("prompt: only its first")

    def test_lyrics_too_long_are_warned_of(self, turbo: AceStepEngine) -> None:
        (warning,) = generate(turbo, lyrics="la " * 2_000).warnings
        assert warning.startswith("lyrics: only about the first 3")


class TestSource:
    TASKS: tuple[dict[str, Any], ...] = (
        {"task": "repaint", "repaint_start_s": 0.5, "repaint_end_s": 1.0},
        {"task": "cover"},
        {"task": "cover", "cover_strength": 0.5},
        {"task": "extract", "track": "vocals"},
        {"task": "lego", "track": "drums"},
        {"task": "complete", "tracks": ("bass", "drums")},
    )

    @pytest.mark.parametrize("asked", TASKS, ids=lambda asked: str(asked["task"]))
    def test_every_task_keeps_the_length_and_comes_again(
        self, turbo: AceStepEngine, source: Samples, asked: dict[str, Any]
    ) -> None:
        first = generate(turbo, source=source, source_audio="upload", **asked)
        generate(turbo, seed=9)  # moves the global generator on
        again = generate(turbo, source=source, source_audio="upload", **asked)
        assert first.samples.shape == source.shape
        assert np.isfinite(first.samples).all()
        assert same(first, again)
        assert not same(first, generate(turbo, seed=2, source=source, source_audio="upload", **asked))

    def test_repaint_keeps_the_source_outside_its_window(self, turbo: AceStepEngine, source: Samples) -> None:
        song = generate(turbo, source=source, source_audio="upload", **self.TASKS[0])
        window = slice(RATE // 2, RATE)
        outside = np.delete(song.samples, window, axis=1)
        assert np.array_equal(outside, np.delete(source, window, axis=1))
        assert np.abs(song.samples[:, window] - source[:, window]).mean() > 0.01

    @pytest.mark.parametrize(("start_s", "end_s"), [(None, 3.0), (-1.0, 0.0), (-1.0, 3.0)])
    def test_repaint_beyond_the_source_continues_it(
        self, turbo: AceStepEngine, source: Samples, start_s: float | None, end_s: float
    ) -> None:
        own_s = source.shape[1] / RATE
        window: dict[str, Any] = {"repaint_start_s": own_s if start_s is None else start_s, "repaint_end_s": end_s}
        song = generate(turbo, source=source, source_audio="upload", task="repaint", **window)
        before = round(max(0, -window["repaint_start_s"]) * RATE)
        assert song.warnings == ()
        assert song.samples.shape[1] == before + max(source.shape[1], round(end_s * RATE))
        if start_s is None or end_s == 0:
            assert np.array_equal(song.samples[:, before : before + source.shape[1]], source)
        new = song.samples[:, :before] if before else song.samples[:, source.shape[1] :]
        assert np.abs(new).mean() > 0.001

    def test_a_reference_has_an_effect(self, turbo: AceStepEngine, source: Samples) -> None:
        request = SongRequest(GenerationSpec(**QUICK, reference_audio="upload"), 1, reference=source)
        (song,) = turbo.generate_all([request], Observer())
        assert song is not None
        assert not same(song, generate(turbo))


class TestBase:
    def test_it_is_recognized_by_its_config(self, base: AceStepEngine, turbo: AceStepEngine) -> None:
        assert (base.model.name, base.model.turbo, base.model.default_steps) == ("my-base", False, 50)
        assert (turbo.model.name, turbo.model.turbo, turbo.model.default_steps) == ("my-turbo", True, 8)
        assert base.model.revision != turbo.model.revision
        assert turbo.model.max_duration_s == 600

    def test_guidance_and_its_interval_have_an_effect(self, base: AceStepEngine, turbo: AceStepEngine) -> None:
        guided = generate(base)
        assert same(guided, generate(base, guidance_scale=7.0))
        assert not same(guided, generate(base, guidance_scale=1.0))
        assert not same(guided, generate(base, cfg_start=0.5))
        # The share of the schedule that has run: 0 is noise, 1 the song.
        for interval, guided_steps in (((0, 0.5), [2, 2, 2, 1, 1]), ((0.5, 1), [1, 1, 1, 2, 2]), ((0, 1), [2] * 5)):
            assert self.rows_of_steps(base, *interval) == guided_steps
        assert same(generate(turbo), generate(turbo, guidance_scale=15.0))

    def rows_of_steps(self, base: AceStepEngine, cfg_start: float, cfg_end: float) -> list[int]:
        """Two for a step with guidance, one for a step without."""
        rows: list[int] = []
        hook = base._pipe.transformer.register_forward_pre_hook(
            lambda _module, _args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
        try:
            generate(base, steps=5, cfg_start=cfg_start, cfg_end=cfg_end)
        finally:
            hook.remove()
        return rows


class TestBatch:
    def test_each_song_is_handed_over_before_the_next_is_decoded(self, turbo: AceStepEngine) -> None:
        decoded: list[int] = []
        hook = turbo._pipe.vae.decoder.register_forward_pre_hook(lambda *_: decoded.append(1))
        try:
            batch = [SongRequest(GenerationSpec(**QUICK), seed) for seed in range(3)]
            calls = [(place, len(decoded)) for place, _ in turbo.generate(batch, Observer())]
        finally:
            hook.remove()
        assert calls == [(0, 1), (1, 2), (2, 3)]

    def test_what_is_constant_is_computed_once(self, tiny_turbo: Path) -> None:
        """Keys and values of a song's text, from its first step to its last; the timbre of silence, in a process."""
        engine = engine_of(tiny_turbo)
        projected, timbres = [], []
        for layer in engine._pipe.transformer.layers:
            layer.cross_attn.to_k.register_forward_hook(lambda *_: projected.append(1))
        timbre_encoder = engine._pipe.condition_encoder.timbre_encoder
        next(timbre_encoder.children()).register_forward_hook(lambda *_: timbres.append(1))
        generate(engine, steps=5)
        assert (len(projected), len(timbres)) == (len(engine._pipe.transformer.layers), 1)
        generate(engine, seed=2, steps=5)
        engine.generate_all([SongRequest(GenerationSpec(**QUICK), seed) for seed in (3, 4)], Observer())
        assert (len(projected), len(timbres)) == (3 * len(engine._pipe.transformer.layers), 1)

    def test_one_given_up_leaves_its_place_empty(self, turbo: AceStepEngine) -> None:
        batch = [SongRequest(GenerationSpec(**QUICK), seed) for seed in (1, 2)]
        first, second = turbo.generate_all(batch, Observer(lambda reported: reported[-1][1] == 1, frozenset({1})))
        assert first is not None
        assert first.seed == 1
        assert second is None


class TestCancel:
    @pytest.mark.parametrize(
        "last",
        [(Stage.CONDITIONING, None, None), (Stage.DENOISING, 1, 2), (Stage.DECODING, None, None)],
        ids=lambda last: str(last[0]),
    )
    def test_it_stops_there_and_the_next_song_is_whole(self, turbo: AceStepEngine, last: Reported) -> None:
        expected = generate(turbo)
        observer = Observer(lambda reported: reported[-1] == last)
        with pytest.raises(Canceled):
            turbo.generate_all([SongRequest(GenerationSpec(**QUICK), 1)], observer)
        assert observer.reported.index(last) == len(observer.reported) - 1
        assert same(generate(turbo), expected)

    def test_it_stops_in_the_midst_of_decoding(self, turbo: AceStepEngine) -> None:
        decoding = (Stage.DECODING, None, None)
        observer = Observer(lambda reported: reported.count(decoding) == 4)
        with pytest.raises(Canceled):
            turbo.generate_all([SongRequest(GenerationSpec(**QUICK), 1)], observer)
        assert observer.reported.count(decoding) == 4

    def test_it_stops_while_the_source_is_encoded(self, turbo: AceStepEngine, source: Samples) -> None:
        observer = Observer(lambda reported: len(reported) == 3)
        spec = GenerationSpec(**QUICK, task="cover", source_audio="upload")
        with pytest.raises(Canceled):
            turbo.generate_all([SongRequest(spec, 1, source)], observer)
        assert observer.reported == [(Stage.CONDITIONING, None, None)] * 3


class TestTrouble:
    @contextmanager
    def before_each_step(self, engine: AceStepEngine, act: Callable[[], object]) -> Iterator[None]:
        hook = engine._pipe.transformer.register_forward_pre_hook(lambda *_: act() and None)
        try:
            yield
        finally:
            hook.remove()

    def test_memory_that_is_not_there(self, turbo: AceStepEngine) -> None:
        expected = generate(turbo)
        with (
            self.before_each_step(turbo, lambda: torch.empty(1 << 50)),
            pytest.raises(EngineOutOfMemory, match=r"1 s does not fit .* cpu, \d+ threads.* no 4503599627370496 bytes"),
        ):
            generate(turbo)
        assert same(generate(turbo), expected)

    def test_a_lost_device_ends_the_engine(self, turbo: AceStepEngine) -> None:
        def lose() -> None:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")

        with self.before_each_step(turbo, lose), pytest.raises(EngineCrashed, match="illegal memory access was"):
            generate(turbo)

    def test_samples_that_are_not_finite(self, turbo: AceStepEngine) -> None:
        bias = turbo._pipe.transformer.proj_out_conv.bias
        before = bias.detach().clone()
        try:
            bias.data.fill_(float("nan"))
            with pytest.raises(InvalidOutput, match="not finite"):
                generate(turbo)
        finally:
            bias.data.copy_(before)

    @pytest.mark.parametrize(
        ("asked", "field"), [({"model": "other"}, "model"), ({"lora": "warm"}, "lora"), ({"model": "my-turbo"}, None)]
    )
    def test_what_this_worker_does_not_have(
        self, turbo: AceStepEngine, asked: dict[str, Any], field: str | None
    ) -> None:
        spec = GenerationSpec(**asked)
        if field is None:
            assert turbo.sampling(spec)[0].steps == 8
            return
        with pytest.raises(Unsupported) as refused:
            turbo.sampling(spec)
        assert refused.value.field == field

    def test_a_checkpoint_without_audio_tokenizer_covers_nothing(self, tiny_turbo: Path, tmp_path: Path) -> None:
        pipe = AceStepPipeline.from_pretrained(tiny_turbo, audio_tokenizer=None)
        pipe.save_pretrained(tmp_path / "plain")
        engine = engine_of(tmp_path / "plain", dtype="bfloat16")
        assert "cover" not in engine.model.tasks
        refused: list[dict[str, Any]] = [{"task": "cover", "source_audio": "a"}, {"audio_codes": "<|audio_code_1|>"}]
        for asked in refused:
            with pytest.raises(Unsupported, match="no audio tokenizer"):
                engine.sampling(GenerationSpec(**asked))
        song = generate(engine)  # in bfloat16, by the way
        assert song.samples.dtype == np.float32
        assert np.isfinite(song.samples).all()


def test_every_error_that_can_leave_the_engine_is_ours(turbo: AceStepEngine) -> None:
    mono = np.zeros((1, RATE), np.float32)
    with pytest.raises(SerinetteError, match="1 channels"):
        generate(turbo, source=mono, task="cover", source_audio="upload")
