"""Which songs share a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpu_worker.engine.ace_step.sampling import fill_in
from gpu_worker.engine.serving.batching import Room, kind_of, padding, plan
from gpu_worker.engine.serving.generation import Generation
from gpu_worker.wire import Message, Stopped
from serinette.spec import GenerationSpec
from tests.engines import SineEngine


def kinds(*asked: dict[str, Any]) -> list[Any]:
    specs = [GenerationSpec(**one) for one in asked]
    return [kind_of(spec, fill_in(spec, turbo=False)[0], spec.duration_s) for spec in specs]


SHORT = {"duration_s": 10}
LONG = {"duration_s": 20}
LONGER = {"duration_s": 11.5}
COVER = {"task": "cover", "source_audio": "upload", "duration_s": 10, "cover_strength": 0.5}


@pytest.mark.parametrize(
    ("waiting", "max_batch", "together"),
    [
        ([], 4, ()),
        ([SHORT], 4, (0,)),
        ([SHORT, SHORT, SHORT], 1, (0,)),
        ([SHORT, SHORT, SHORT], 2, (0, 1)),
        ([SHORT, LONG, SHORT, LONG], 4, (0, 2)),
        ([SHORT, LONGER, LONG], 4, (0, 1)),
        ([LONGER, SHORT, LONG], 4, (0, 1)),
        ([LONGER, LONG, SHORT, SHORT], 4, (0, 2, 3)),
        ([LONG, SHORT, LONG], 4, (0, 2)),
        ([COVER, SHORT, COVER], 4, (0, 1, 2)),
        ([{**SHORT, "reference_audio": "upload"}, SHORT, COVER], 4, (0, 1, 2)),
        ([{"audio_codes": "<|audio_code_1|>"}] * 2, 4, (0, 1)),
    ],
)
def test_the_first_in_line_takes_its_kind_along(
    waiting: list[dict[str, Any]], max_batch: int, together: tuple[int, ...]
) -> None:
    assert plan(kinds(*waiting), Room(max_batch)) == together


def test_one_that_must_be_alone_is() -> None:
    first, second = kinds(SHORT, SHORT)
    assert plan([None, first], Room(4)) == (0,)
    assert plan([first, None, second], Room(4)) == (0, 2)


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 20},
        {"guidance_scale": 3},
        {"shift": 2},
        {"timesteps": (1.0, 0.5)},
        {"cfg_start": 0.2},
        {"cfg_end": 0.8},
    ],
)
def test_what_the_pipeline_takes_once_a_call_parts_songs(other: dict[str, Any]) -> None:
    assert plan(kinds({}, other), Room(2)) == (0,)


@pytest.mark.parametrize(
    ("durations_s", "share"),
    [((60,), 0), ((60, 60), 0), ((30, 60), 0.25), ((60, 60, 60, 20), 1 / 6), ((9, 10), 0.05), ((1, 100), 0.495)],
)
def test_what_shorter_songs_are_filled_up_with_is_no_music(durations_s: tuple[float, ...], share: float) -> None:
    assert padding(durations_s) == pytest.approx(share)


def test_a_longer_song_may_find_no_room_where_a_shorter_does() -> None:
    waiting = kinds(SHORT, LONGER, SHORT)
    assert plan(waiting, Room(4, audio_s=20)) == (0, 2)
    assert plan(waiting, Room(4, audio_s=23)) == (0, 1)


@pytest.mark.parametrize(
    ("room", "duration_s", "songs"),
    [
        (Room(8), 60, 8),
        (Room(8, audio_s=240), 60, 4),
        (Room(8, audio_s=240), 59, 4),
        (Room(8, audio_s=240), 600, 1),
        (Room(8).after_overflow(8, 60), 60, 4),
        (Room(8).after_overflow(8, 60), 30, 8),
        (Room(8).after_overflow(8, 60).after_overflow(4, 60), 60, 2),
        (Room(8).after_overflow(2, 10).after_overflow(8, 60), 10, 1),  # what was learned of little audio stays
    ],
)
def test_there_is_room_for(room: Room, duration_s: float, songs: int) -> None:
    assert room.songs(duration_s) == songs


def test_what_each_song_has_of_its_own_does_not() -> None:
    own = {"prompt": "x", "lyrics": "la", "bpm": 90, "key_scale": "A minor", "seed": 3, "vocal_language": "ja"}
    assert plan(kinds({}, {**own, "loudness_lufs": -14, "format": "wav", "steps": 50}), Room(2)) == (0, 1)


def test_a_job_canceled_while_it_is_prepared_asks_the_engine_nothing(tmp_path: Path) -> None:
    """Another thread cancels it, which lets go of its samples; the model's thread has it in hand by then."""
    sent: list[Message] = []
    job = Generation("job", GenerationSpec(), {}, lambda message, _: sent.append(message))
    job.cancel()
    job.prepare(SineEngine(tmp_path))
    assert (job.kind, job.remaining, sent) == (None, [], [Stopped()])
