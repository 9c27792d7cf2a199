"""Songs planned by a tiny random planner beside a tiny random pipeline, and text alone, by the engine itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.ace_step.footprint import need_of
from gpu_worker.engine.ace_step.pipeline import SongPipeline
from gpu_worker.engine.ace_step.planning import stated
from gpu_worker.engine.checkpoints.locating import planner_directory
from gpu_worker.engine.interface import Checkpoint, Song, SongRequest
from gpu_worker.engine.serving.generation import summarize
from gpu_worker.planner import loading as planners
from gpu_worker.planner import planner as planner_module
from gpu_worker.planner.decoding import Observe
from gpu_worker.planner.grammar import Grammars
from gpu_worker.planner.planner import Answer, Planner
from gpu_worker.planner.prompts import UNDERSTAND
from gpu_worker.planner.questions import Question
from gpu_worker.settings import WorkerSettings
from gpu_worker.wire import Report
from serinette.batch import BatchSpec
from serinette.errors import Canceled, ConfigurationError, InvalidAudio, Unsupported
from serinette.job import Stage
from serinette.spec import INSTRUMENTAL, GenerationSpec, Planned
from tests.tiny_checkpoint import build, engine_of, unobserved
from tests.unit.test_engine_ace_step import Observer
from tests.unit.test_planner_decoding import CODES
from tests.unit.test_planner_loading import one_thread, save_tiny_planner

__all__ = ["one_thread"]

RATE = 48_000
GIVEN: dict[str, Any] = {"bpm": 97, "key_scale": "F# minor", "time_signature": "3"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_planner(tmp_path_factory.mktemp("planner"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its audio codes are those that the planner knows."""
    build(made := tmp_path_factory.mktemp("checkpoint"), turbo=True, levels=[8, 8, 4])
    return made


@pytest.fixture(scope="module")
def engine(checkpoint: Path, directory: Path) -> AceStepEngine:
    """Its captions and lyrics are short: a random model ends none by itself."""
    with pytest.MonkeyPatch.context() as patched:
        short = partial(Grammars, most_caption_tokens=12, most_lyrics_tokens=16)
        patched.setattr(planner_module, "Grammars", short)
        return engine_of(checkpoint, planner_model=str(directory))


@pytest.fixture(scope="module")
def unplanned(checkpoint: Path) -> AceStepEngine:
    return engine_of(checkpoint)


def request(seed: int = 1, **asked: Any) -> SongRequest:
    spec = GenerationSpec(**{"prompt": "a quiet piano", "duration_s": 1.0, "steps": 1, "thinking": True, **asked})
    return SongRequest(spec, seed, lm_seed=spec.lm_seeds[0] if spec.lm_seed is not None else seed)


def songs(engine: AceStepEngine, *batch: SongRequest) -> list[Song]:
    made = engine.generate_all(batch, unobserved)
    assert all(made)
    return [song for song in made if song]


def texts(engine: AceStepEngine, *batch: SongRequest) -> list[Planned]:
    return [text for _, text in engine.generate(batch, unobserved) if isinstance(text, Planned)]


def plan_of(song: Song) -> Planned:
    assert song.plan
    return song.plan


@pytest.mark.parametrize(
    "length_s", [each if each <= 10 else pytest.param(each, marks=pytest.mark.load) for each in CODES]
)
def test_a_planned_song_has_its_codes_and_its_length(engine: AceStepEngine, length_s: float) -> None:
    (song,) = songs(engine, request(duration_s=length_s))
    assert plan_of(song).codes == CODES[length_s]
    assert song.audio_codes
    assert song.audio_codes.count("<|audio_code_") == CODES[length_s]
    assert song.samples.shape[1] == round(length_s * RATE)


def test_what_is_given_is_kept(engine: AceStepEngine) -> None:
    (song,) = songs(engine, request(**GIVEN))
    assert {name: getattr(plan_of(song), name) for name in GIVEN} == GIVEN
    assert plan_of(song).caption


@pytest.mark.parametrize(
    ("prompt", "bpm", "key_scale"),
    [
        ("a sad harp in F# minor at 88 bpm", 88, "F# minor"),
        ("BPM: 120, Eb Major", 120, "Eb major"),
        ("calm, A minor", None, "A minor"),
        ("A minor-key ballad, 1988 bpm", None, None),
        ("C majorのハープ、BPM90で", 90, "C major"),
        ("ハープ １２０ＢＰＭ", 120, None),
        ("a minor change in a major way", None, None),
        ("変ホ長調のハープ、90bpm", 90, "Eb major"),
        ("嬰ヘ短調", None, "F# minor"),
        ("9 bpm, 999 bpm, BigMajor", None, None),
    ],
)
def test_what_a_prompt_states_is_given(prompt: str, bpm: int | None, key_scale: str | None) -> None:
    assert (stated(prompt).bpm, stated(prompt).key_scale) == (bpm, key_scale)


def test_the_same_song_without_a_planner_from_its_plan(engine: AceStepEngine, unplanned: AceStepEngine) -> None:
    asked = request(duration_s=1.3)
    (song,) = songs(engine, asked)
    again = replace(asked, spec=plan_of(song).applied_to(asked.spec, song.audio_codes))
    assert not again.spec.thinking
    (repeated,) = songs(unplanned, again)
    assert np.array_equal(repeated.samples, song.samples)
    assert unplanned.sampling(again.spec)[1] == ()


def test_a_songs_seed_makes_its_plan_alone_and_together(engine: AceStepEngine) -> None:
    batch = [request(1), request(2, duration_s=1.2), request(3, lm_seed=1)]
    together = songs(engine, *batch)
    alone = [songs(engine, each)[0] for each in batch]
    assert [song.plan for song in together] == [song.plan for song in alone]
    assert [song.audio_codes for song in together] == [song.audio_codes for song in alone]
    first, other, of_lm_seed = together
    assert first.plan != other.plan
    assert first.audio_codes == of_lm_seed.audio_codes  # the song's own seed is another


def test_sampling_is_the_specs(engine: AceStepEngine) -> None:
    greedy = {"lm_temperature": 0.0, "lm_cfg_scale": 1.0}
    one, other = songs(engine, request(1, **greedy), request(2, **greedy))
    assert one.plan == other.plan
    (guided,) = songs(engine, request(1, lm_temperature=0.0, lm_cfg_scale=4.0))
    assert guided.audio_codes != one.audio_codes


def test_a_source_or_codes_that_are_given_are_not_written_over(engine: AceStepEngine) -> None:
    source = np.full((2, RATE), 0.1, np.float32)
    on_source = request(task="repaint", source_audio="a/0", repaint_end_s=0.5)
    (repainted,) = songs(engine, replace(on_source, source=source))
    (coded,) = songs(engine, request(audio_codes="<|audio_code_1|>" * 5))
    for song in (repainted, coded):
        assert plan_of(song).codes == 0
        assert plan_of(song).bpm
        assert song.audio_codes is None


def test_planning_is_reported_and_canceled_within_a_token(engine: AceStepEngine) -> None:
    observer = Observer()
    engine.generate_all([request(duration_s=12.0)], observer)
    stages = list(dict.fromkeys(stage for stage, _, _ in observer.reported))
    assert stages == [Stage.PLANNING, Stage.CONDITIONING, Stage.DENOISING, Stage.DECODING]
    assert (Stage.PLANNING, 50, 60) in observer.reported

    def at_50(reported: Sequence[object]) -> bool:
        return (Stage.PLANNING, 50, 60) in reported

    canceled = Observer(at_50)
    with pytest.raises(Canceled):
        engine.generate_all([request(duration_s=12.0)], canceled)
    assert canceled.reported.count((Stage.PLANNING, 50, 60)) == 1
    one_of_two = Observer(at_50)
    made = engine.generate_all([request(duration_s=12.0), request(2, duration_s=12.0)], one_of_two)
    assert made[0] is None
    assert made[1]
    assert plan_of(made[1]).codes == 60


@pytest.mark.parametrize("thinking", [True, False])
def test_a_song_from_a_wish(engine: AceStepEngine, unplanned: AceStepEngine, thinking: bool) -> None:
    asked = request(rewrite="write", thinking=thinking)
    (song,) = songs(engine, asked)
    plan = plan_of(song)
    assert plan.caption
    assert plan.lyrics
    assert plan.codes == (5 if thinking else 0)
    (repeated,) = songs(unplanned, replace(asked, spec=plan.applied_to(asked.spec, song.audio_codes)))
    assert np.array_equal(repeated.samples, song.samples)
    (kept,) = songs(engine, request(rewrite="format", lyrics="la la", vocal_language="ja", **GIVEN))
    assert plan_of(kept).vocal_language == "ja"
    assert {name: getattr(plan_of(kept), name) for name in GIVEN} == GIVEN


class TestText:
    def test_a_wish_becomes_a_caption_lyrics_and_metadata(self, engine: AceStepEngine) -> None:
        written, silent = texts(engine, request(task="write"), request(task="write", lyrics=INSTRUMENTAL))
        assert written.caption
        assert written.lyrics
        assert written.bpm
        assert written.key_scale
        assert written.time_signature
        assert written.duration_s == 1  # as given
        assert silent.lyrics == INSTRUMENTAL

    def test_what_is_given_is_kept_and_what_is_left_out_is_written(self, engine: AceStepEngine) -> None:
        given = SongRequest(
            GenerationSpec(task="format", prompt="x", lyrics="la", duration_s=60, vocal_language="en", bpm=90), 1
        )
        left = replace(given, spec=GenerationSpec(task="format", prompt="x", lyrics="la"))
        for over_the_wire in (given, left):
            spec = GenerationSpec.from_wire(over_the_wire.spec.to_wire())
            assert spec.model_fields_set == over_the_wire.spec.model_fields_set
        kept, written = texts(engine, given, left)
        assert (kept.duration_s, kept.vocal_language, kept.bpm) == (60, "en", 90)
        assert written.duration_s != 60

    def test_a_source_is_described_by_its_codes(self, engine: AceStepEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Question] = []
        answer = Planner.answer

        def listening(planner: Planner, questions: Sequence[Question], observe: Observe) -> list[Answer | None]:
            asked.extend(questions)
            return answer(planner, questions, observe)

        monkeypatch.setattr(Planner, "answer", listening)
        sources = np.random.default_rng(0).normal(0, 0.1, (2, 2, RATE * 21 // 10)).astype(np.float32)
        first = replace(request(task="describe", source_audio="a/0", bpm=97), source=sources[0, :, : 2 * RATE])
        other = replace(request(2, task="describe", source_audio="b", vocal_language="ja"), source=sources[1])
        together = texts(engine, first, other)
        assert [each.instruction for each in asked] == [UNDERSTAND] * 2
        assert [len(each.codes) for each in asked] == [10, 11]  # the last of 2.1 s in part
        assert asked[0].codes != asked[1].codes[:10]
        assert together == [*texts(engine, first), *texts(engine, other)]
        assert (together[0].bpm, together[1].vocal_language) == (97, "ja")
        assert [text.duration_s for text in together] == [2.0, 2.2]
        for text in together:
            assert text.caption and text.lyrics and text.key_scale and text.time_signature and text.bpm
        # The codes are what a cover of the source follows.
        codes = "".join(f"<|audio_code_{code}|>" for code in asked[0].codes)
        (covered,) = songs(engine, replace(first, spec=GenerationSpec(task="cover", source_audio="a", steps=1)))
        (coded,) = songs(engine, SongRequest(GenerationSpec(task="cover", audio_codes=codes, steps=1, duration_s=2), 1))
        assert np.allclose(covered.samples, coded.samples, atol=1e-4)

    def test_a_source_to_describe_is_checked_and_the_rest_is_ignored(self, engine: AceStepEngine) -> None:
        spec = GenerationSpec(task="describe", source_audio="a", prompt="x", lyrics="la", duration_s=9)
        assert [warning.partition(":")[0] for warning in engine.sampling(spec)[1]] == ["prompt", "lyrics", "duration_s"]
        spec = GenerationSpec(task="write", prompt="x", source_audio="a")
        assert engine.sampling(spec)[1] == ("source_audio: ignored, task write does not use it",)
        for source, words in ((np.zeros((1, RATE)), "1 channels"), (np.zeros((2, RATE * 601)), "at most 600 s")):
            wrong = replace(request(task="describe", source_audio="a"), source=source.astype(np.float32))
            with pytest.raises(InvalidAudio, match=words):
                engine.duration_s(wrong)

    def test_describing_is_canceled_within_a_token(self, engine: AceStepEngine) -> None:
        described = replace(request(task="describe", source_audio="a"), source=np.zeros((2, RATE), np.float32))
        canceled = Observer(lambda reported: len(reported) >= 20)
        with pytest.raises(Canceled):
            engine.generate_all([described], canceled)
        assert {stage for stage, _, _ in canceled.reported} == {Stage.PLANNING}
        assert len(canceled.reported) == 20

    def test_what_cannot_describe_says_why(
        self, unplanned: AceStepEngine, tiny_turbo: Path, directory: Path, tmp_path: Path
    ) -> None:
        build(slow := tmp_path / "slow", turbo=True, strides=(2, 4, 4, 4, 10))
        engines = {
            "needs a planner, which": unplanned,
            "knows the 64000 audio codes of the checkpoint, and planner0 knows 256": engine_of(
                tiny_turbo, planner_model=str(directory)
            ),
            "no audio tokenizer of 5 Hz": engine_of(slow, planner_model=str(directory)),
        }
        for words, engine in engines.items():
            assert "describe" not in engine.model.tasks
            with pytest.raises(Unsupported, match=words):
                engine.sampling(GenerationSpec(task="describe", source_audio="a"))

    def test_a_worker_without_a_planner_says_so(self, unplanned: AceStepEngine, engine: AceStepEngine) -> None:
        assert {"write", "format", "describe"} <= set(engine.model.tasks)
        assert not {"write", "format"} & set(unplanned.model.tasks)
        with pytest.raises(Unsupported, match="task: write needs a planner"):
            unplanned.sampling(GenerationSpec(task="write", prompt="x"))
        _, warnings = unplanned.sampling(GenerationSpec(prompt="x", thinking=True))
        assert warnings == ("thinking: ignored, this worker has no planner",)
        (song,) = songs(unplanned, request())
        assert song.plan is None


@pytest.mark.parametrize(
    ("places", "report"),
    [
        (
            [Report(stage=Stage.PLANNING, step=25, steps=60), Report(stage=Stage.PLANNING, step=50, steps=60)],
            Report(stage=Stage.PLANNING, step=50, steps=60),
        ),
        (
            [Report(stage=Stage.PLANNING, step=25), Report(stage=Stage.CONDITIONING)],
            Report(stage=Stage.PLANNING, step=25),
        ),
        (
            [Report(stage=Stage.DECODING, step=8), Report(stage=Stage.PLANNING, step=50, steps=60)],
            Report(stage=Stage.DENOISING, step=8, steps=16),
        ),
    ],
)
def test_progress_never_runs_backwards(places: list[Report], report: Report) -> None:
    assert summarize(places, 8) == report


def test_specs_that_older_workers_must_not_take() -> None:
    asked: list[dict[str, Any]] = [{"thinking": True}, {"rewrite": "format"}, {"task": "write", "prompt": "x"}, {}]
    asked.append({"task": "describe", "source_audio": "a"})
    assert [GenerationSpec(**fields).needs_schema for fields in asked] == [3, 3, 3, 1, 4]
    wish = {"task": "write", "prompt": "x"}
    assert GenerationSpec(**wish).digest() != GenerationSpec(**wish, duration_s=60).digest()
    assert GenerationSpec(prompt="x").digest() == GenerationSpec(prompt="x", duration_s=60).digest()
    for refused in (
        {"task": "write", "prompt": "x", "lyrics": "la"},
        {"task": "format"},
        {"lm_top_p": 0},
        {"task": "describe"},
    ):
        with pytest.raises(ValueError, match=r"lyrics|prompt|lm_top_p|source_audio"):
            GenerationSpec(**refused)
    with pytest.raises(ValueError, match="a batch is of songs"):
        BatchSpec(**wish)


def test_which_planner_a_worker_has(tiny_turbo: Path, directory: Path, tmp_path: Path) -> None:
    def found(checkpoint: Path, **given: Any) -> Path | None:
        settings = WorkerSettings(work_dir=tmp_path, model=str(checkpoint), **given)
        return planner_directory(settings, Checkpoint(checkpoint, "x", "0"))

    assert found(tiny_turbo) is None
    assert found(tiny_turbo, planner_model=directory.as_uri()) == directory
    with pytest.raises(ConfigurationError, match="planner_model nonsense: no such directory"):
        found(tiny_turbo, planner_model="nonsense")
    bringing = tmp_path / "bringing"
    shutil.copytree(tiny_turbo, bringing)
    brought = Path(shutil.copytree(directory, bringing / "lm"))
    assert found(bringing) == brought
    assert found(bringing, planner_model="none") is None
    assert found(bringing, planner_model="bundled") == found(Path("bundled"))


def test_a_planner_that_is_none_is_noticed_before_the_song_model_is_loaded(
    tiny_turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}')
    monkeypatch.setattr(SongPipeline, "from_pretrained", lambda *_, **__: pytest.fail("the song model was loaded"))
    with pytest.raises(ConfigurationError, match=r"config.json says None, no causal language model"):
        engine_of(tiny_turbo, planner_model=str(tmp_path))


def test_the_planner_is_in_the_memory_plan(tiny_base: Path, directory: Path) -> None:
    alone, beside = need_of(tiny_base, torch.bfloat16), need_of(tiny_base, torch.bfloat16, directory)
    planner = planners.need_of(directory, torch.bfloat16)
    assert beside.weights_bytes - alone.weights_bytes == planner.weights_bytes
    assert beside.largest_part_bytes - alone.largest_part_bytes == planner.weights_bytes
    (curve,) = set(beside.steps) - set(alone.steps)
    # Two rows of a minute of codes, which the plan doubles again for guidance.
    minute, second = (curve.bytes_of(seconds * beside.frames_per_s) for seconds in (60, 1))
    assert 2 * (minute - second) == pytest.approx(2 * 59 * 5 * planner.cache_bytes_per_token)
