"""A song does not depend on its neighbours: random mixes of them and of tasks, against each of them alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.interface import SongRequest, StepObserver
from gpu_worker.wire import Samples
from serinette.job import Stage
from serinette.spec import GenerationSpec
from tests.tiny_checkpoint import build, engine_of

# In fp32 what is left is the order of sums, which the size of a matrix decides.
FP32_TOLERANCE = 1e-5
# In bf16 a song of a batch was measured 0.5 to 1.2 % of its rms away from itself alone (docs/engine.md).
BF16_SHARE = 0.03
# In bf16 a batch may be as far from fp32 as the song alone is, and half as much again.
BF16_FACTOR = 1.5
STEPS = 3

SONG = st.fixed_dictionaries(
    {
        "prompt": st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=120),
        "lyrics": st.sampled_from(["", "la", "[verse]\n" + "a long line of words\n" * 8]),
        "vocal_language": st.sampled_from(["en", "ja", "de"]),
        "bpm": st.none() | st.integers(30, 300),
        "key_scale": st.none() | st.sampled_from(["C major", "F# minor"]),
        "time_signature": st.none() | st.sampled_from(["3", "4", "6/8"]),
        "seed": st.integers(0, 2**63 - 1),
        # An odd and an even number of latent frames, and one (2.2 s) that the stock pipeline fails on.
        "duration_s": st.sampled_from([1.0, 1.04, 2.2]),
    }
)
MIX = st.lists(SONG, min_size=2, max_size=4)
PLAIN: dict[str, Any] = {"prompt": "a", "seed": 1, "duration_s": 1.0}
LONG: dict[str, Any] = {"prompt": "b" * 100, "lyrics": "c " * 200, "bpm": 90, "seed": 2, "duration_s": 1.0}
# More than a sliding layer looks back: behind a short song's end it sees nothing.
LONGER: dict[str, Any] = {**PLAIN, "duration_s": 12.0, "seed": 5}
FEW = settings(
    derandomize=True, max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=["turbo", "base"])
def engine(request: pytest.FixtureRequest) -> AceStepEngine:
    directory: Path = request.getfixturevalue(f"tiny_{request.param}")
    return engine_of(directory)


def requests(mix: list[dict[str, Any]]) -> list[SongRequest]:
    specs = [GenerationSpec(**{**song, "steps": STEPS}) for song in mix]
    return [
        SongRequest(
            spec,
            spec.seeds[0],
            wave(spec.source_audio) if spec.source_audio else None,
            wave(spec.reference_audio) if spec.reference_audio else None,
        )
        for spec in specs
    ]


def wave(name: str) -> Samples:
    """Audio by its name, `tone-SAMPLES`: as long as it says."""
    frames = int(name.partition("-")[2])
    tone = 0.3 * np.sin(np.arange(frames) / (20 + frames % 7))
    return np.stack([tone, 0.5 * tone]).astype(np.float32)


def giving_up(places: frozenset[int], at_step: int) -> StepObserver:
    steps_seen: list[int] = []

    def observe(stage: Stage, step: int | None, steps: int | None) -> frozenset[int]:
        steps_seen.append(step or 0)
        return places if max(steps_seen) >= at_step else frozenset()

    return observe


def generate(
    engine: AceStepEngine, batch: list[SongRequest], canceled: frozenset[int] = frozenset()
) -> list[Samples | None]:
    songs = engine.generate_all(batch, giving_up(canceled, 1))
    return [song.samples if song else None for song in songs]


@FEW
@example(mix=[PLAIN, LONG], cancel=False)
@example(mix=[LONG, PLAIN, PLAIN], cancel=True)
@example(mix=[PLAIN, LONGER, {**LONG, "duration_s": 1.04}], cancel=False)
@example(mix=[LONGER, PLAIN], cancel=True)
@given(mix=MIX, cancel=st.booleans())
def test_a_song_is_the_same_in_any_company(engine: AceStepEngine, mix: list[dict[str, Any]], cancel: bool) -> None:
    batch = requests(mix)
    together = generate(engine, batch, frozenset({0}) if cancel else frozenset())
    assert [song is None for song in together] == [cancel, *(False for _ in mix[1:])]
    for request, song in zip(batch, together, strict=True):
        if song is not None:
            (alone,) = generate(engine, [request])
            assert alone is not None
            assert song.shape == alone.shape
            assert np.abs(song - alone).max() <= FP32_TOLERANCE


CODES = "".join(f"<|audio_code_{code}|>" for code in range(0, 1_500, 100))
# Every task beside every other, with sources of many lengths, a reference, codes, a window, a cover that leaves its
# source after the first step and one that never follows it.
TASKS: list[dict[str, Any]] = [
    {"prompt": "text", "seed": 11, "duration_s": 2.9},
    {"prompt": "a cover", "task": "cover", "source_audio": "tone-144000", "seed": 12},
    {"prompt": "half a cover", "task": "cover", "source_audio": "tone-140001", "cover_strength": 0.4, "seed": 13},
    {"prompt": "no cover", "task": "cover", "source_audio": "tone-144000", "cover_strength": 0.0, "seed": 14},
    {"prompt": "codes", "audio_codes": CODES, "seed": 15},
    {"prompt": "codes, half", "audio_codes": CODES[: len(CODES) // 3 * 3], "cover_strength": 0.7, "seed": 16},
    {
        "prompt": "anew",
        "task": "repaint",
        "source_audio": "tone-139999",
        "repaint_start_s": 0.51,
        "repaint_end_s": 1.2,
        "seed": 17,
    },
    {"prompt": "a timbre", "reference_audio": "tone-70000", "duration_s": 3.0, "lyrics": "la " * 40, "seed": 18},
    {
        "prompt": "drums",
        "task": "lego",
        "track": "drums",
        "source_audio": "tone-144000",
        "repaint_end_s": 1,
        "seed": 19,
    },
    {"prompt": "one", "task": "extract", "track": "vocals", "source_audio": "tone-143000", "seed": 20},
    {"prompt": "all", "task": "complete", "tracks": ("bass", "drums"), "source_audio": "tone-144000", "seed": 21},
    {"prompt": "a sample", "task": "cover", "source_audio": "tone-1", "seed": 23},
    {"prompt": "both", "task": "cover", "source_audio": "tone-144000", "reference_audio": "tone-1", "seed": 22},
]


def test_every_task_is_the_same_in_any_company(engine: AceStepEngine) -> None:
    batch = requests(TASKS)
    alone = [generate(engine, [request])[0] for request in batch]
    assert len({song.tobytes() for song in alone if song is not None}) == len(batch)
    for places in (range(len(batch)), (3, 2)):
        together = generate(engine, [batch[place] for place in places])
        for place, song in zip(places, together, strict=True):
            own = alone[place]
            assert song is not None
            assert own is not None
            assert song.shape == own.shape
            assert np.abs(song - own).max() <= FP32_TOLERANCE, batch[place].spec.prompt


@pytest.mark.parametrize("kind", ["turbo", "base"])
def test_a_tokenizer_that_pads_in_front_changes_nothing(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    copy = Path(shutil.copytree(request.getfixturevalue(f"tiny_{kind}"), tmp_path / "copy"))
    config = copy / "tokenizer" / "tokenizer_config.json"
    given = json.loads(config.read_text())
    config.write_text(json.dumps({**given, "padding_side": "left", "truncation_side": "left"}))
    engine = engine_of(copy)
    batch = requests([PLAIN, LONG])
    for each, song in zip(batch, generate(engine, batch), strict=True):
        (alone,) = generate(engine, [each])
        assert song is not None
        assert alone is not None
        assert np.abs(song - alone).max() <= FP32_TOLERANCE


def test_a_cover_of_no_strength_is_a_song_of_text(engine: AceStepEngine) -> None:
    cover, text = requests(
        [{**TASKS[3], "seed": 7}, {"prompt": TASKS[3]["prompt"], "duration_s": 3.0, "seed": 7}],
    )
    (covered,), (text_alone,) = generate(engine, [cover]), generate(engine, [text])
    assert covered is not None
    assert text_alone is not None
    assert np.abs(covered - text_alone).max() <= FP32_TOLERANCE


def test_a_weak_cover_follows_its_source_for_its_share_of_the_steps(engine: AceStepEngine) -> None:
    contexts = []
    hook = engine._pipe.transformer.register_forward_hook(
        lambda _module, _args, kwargs, _output: contexts.append(kwargs["context_latents"].clone()), with_kwargs=True
    )
    try:
        generate(engine, requests([{**TASKS[1], "cover_strength": 0.7}]))  # int(3 * 0.7) = 2 of 3 steps
    finally:
        hook.remove()
    assert len(contexts) == STEPS, "one pass of the transformer a step"
    assert np.array_equal(contexts[0], contexts[1])
    silence = engine._pipe.condition_encoder.silence_latent[0, : contexts[2].shape[1]]
    assert np.array_equal(contexts[2][0, :, : silence.shape[1]], silence)
    assert not np.array_equal(contexts[1], contexts[2])


# A second each, of every kind.
HALF: list[dict[str, Any]] = [
    PLAIN,
    {**LONG, "duration_s": 1.48},
    {"prompt": "a cover", "task": "cover", "source_audio": "tone-48000", "cover_strength": 0.4, "seed": 12},
    {"prompt": "codes", "audio_codes": CODES[: len(CODES) // 3], "seed": 15},
    {**TASKS[6], "source_audio": "tone-50001"},
    {**TASKS[8], "source_audio": "tone-48000", "repaint_end_s": 0.5},
]


@pytest.mark.parametrize(("turbo", "dtype"), [(True, "bfloat16"), (False, "bfloat16"), (True, "float16")])
def test_company_costs_no_accuracy_in_half_precision(turbo: bool, dtype: str, tmp_path: Path) -> None:
    build(tmp_path, turbo=turbo, strides=(48, 40))  # a CPU's convolutions in half precision are slow
    exact, coarse = (engine_of(tmp_path, dtype=dtype) for dtype in ("float32", dtype))
    batch = requests(HALF[:2] if dtype == "float16" else HALF)
    for request, song in zip(batch, generate(coarse, batch), strict=True):
        (alone,), (truth,) = (generate(engine, [request]) for engine in (coarse, exact))
        assert alone is not None
        assert np.isfinite(alone).all()
        assert error(song, truth) <= BF16_FACTOR * error(alone, truth)
        assert error(song, alone) <= BF16_SHARE * float(np.sqrt(np.mean(alone**2))), request.spec.prompt
    (again,) = generate(coarse, [batch[-1]])
    assert alone is not None
    assert again is not None
    assert np.array_equal(alone, again), "alone, the same bits in any dtype"


def error(song: Samples | None, truth: Samples | None) -> float:
    assert song is not None
    assert truth is not None
    return float(np.sqrt(np.mean((song - truth) ** 2)))
