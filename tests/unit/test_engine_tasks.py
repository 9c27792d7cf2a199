"""What a task asks of the pipeline, and what a source's length allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpu_worker.engine.ace_step import tasks
from gpu_worker.engine.ace_step.sampling import fill_in
from gpu_worker.engine.ace_step.tasks import Grid, Window
from gpu_worker.engine.interface import SongRequest
from gpu_worker.wire import Samples
from serinette.errors import InvalidAudio, InvalidSpec
from serinette.spec import GenerationSpec

GRID = Grid(48_000, 2, 25.0, 5, 64_000, 600)
REPAINT = {"task": "repaint", "source_audio": "upload"}
LEGO = {"task": "lego", "source_audio": "upload", "track": "drums"}


def audio(seconds: float, channels: int = 2) -> Samples:
    return np.zeros((channels, round(seconds * 48_000)), np.float32)


@pytest.mark.parametrize(
    ("asked", "source", "seconds"),
    [
        ({"duration_s": 12.34}, None, 12.34),
        (REPAINT, audio(7.5), 7.5),
        ({**REPAINT, "duration_s": 30}, audio(7.5), 7.5),
        ({"audio_codes": "<|audio_code_0|><|audio_code_63999|>", "duration_s": 30}, None, 0.4),
        ({"task": "cover", "audio_codes": "<|audio_code_5|>", "source_audio": "upload"}, audio(9), 0.2),
        ({"duration_s": 12, "source_audio": "upload"}, audio(7.5), 12),
    ],
)
def test_how_long_a_song_is(asked: dict[str, Any], source: Samples | None, seconds: float) -> None:
    request = SongRequest(GenerationSpec(**asked), 0, source)
    assert tasks.length_s(request, GRID) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("window", "length", "seconds", "kept"),
    [
        ((3, 8), 8, (3, 8), (0, 3)),
        ((2, 8), 8, (2, 8), (0, 3)),
        ((5, 8), 8, (3, 8), (0, 3)),  # nothing is to be kept between its end and second 5
        ((None, 8), 8, (0, 8), (0, 3)),
        ((-2, 0), 5, (0, 2), (2, 5)),
        ((-2, 1), 5, (0, 3), (2, 5)),
        ((-2, None), 5, (0, 5), (2, 5)),
        ((-2, 4.5), 6.5, (0, 6.5), (2, 5)),
        ((1, 2), 3, (1, 2), None),
        ((0, 3), 3, (0, 3), None),
    ],
)
def test_a_song_of_three_seconds_is_continued(
    window: tuple[float | None, float | None],
    length: float,
    seconds: tuple[float, float],
    kept: tuple[float, float] | None,
) -> None:
    spec = GenerationSpec(**REPAINT, repaint_start_s=window[0], repaint_end_s=window[1])
    source = audio(3) + np.float32(0.5)
    request, own = tasks.continued(SongRequest(spec, 0, source), GRID)
    assert tasks.length_s(request, GRID) == pytest.approx(length)
    assert tasks.window_of(request.spec, length) == (Window(*seconds), ())
    assert own == (kept and tuple(round(second * 48_000) for second in kept))
    assert request.source is not None
    first, last = own or (0, source.shape[1])
    assert np.array_equal(request.source[:, first:last], source)
    assert not request.source[:, :first].any()
    assert not request.source[:, last:].any()


def test_other_tasks_continue_nothing() -> None:
    request = SongRequest(GenerationSpec(**LEGO, repaint_end_s=8), 0, audio(3))
    assert tasks.continued(request, GRID) == (request, None)
    with pytest.raises(InvalidSpec, match="only repaint continues"):
        GenerationSpec.from_wire({**LEGO, "repaint_start_s": -1})
    with pytest.raises(InvalidAudio, match="at most 600 s"):
        tasks.continued(SongRequest(GenerationSpec(**REPAINT, repaint_start_s=-599), 0, audio(3)), GRID)


@pytest.mark.parametrize(
    ("asked", "source", "error", "words"),
    [
        (REPAINT, audio(2, channels=1), InvalidAudio, "1 channels, the model takes 2"),
        (REPAINT, None, InvalidAudio, "did not come"),
        (REPAINT, audio(601), InvalidAudio, "at most 600 s"),
        (REPAINT, audio(0), InvalidAudio, "holds no samples"),
        (REPAINT, audio(1) + np.float32("nan"), InvalidAudio, "source audio holds samples of nan"),
        (REPAINT, audio(1) - np.float32("inf"), InvalidAudio, "samples of inf"),
        (REPAINT, audio(1) + np.float32(1e30), InvalidAudio, "samples of 1e[+]30"),
        ({"audio_codes": "none at all"}, None, InvalidSpec, "holds no"),
        ({"audio_codes": "<|audio_code_64000|>"}, None, InvalidSpec, "0 to 63999"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    asked: dict[str, Any], source: Samples | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        tasks.length_s(SongRequest(GenerationSpec(**asked), 0, source), GRID)


@pytest.mark.parametrize(
    ("asked", "window", "warned"),
    [
        ({}, None, False),
        ({"repaint_start_s": 1, "repaint_end_s": 2}, None, False),
        (REPAINT, Window(0, 10), False),
        ({**REPAINT, "repaint_start_s": 2, "repaint_end_s": 3}, Window(2, 3), False),
        ({**REPAINT, "repaint_start_s": 2}, Window(2, 10), False),
        ({**REPAINT, "repaint_end_s": 10}, Window(0, 10), False),
        ({**REPAINT, "repaint_start_s": 2, "repaint_end_s": 11}, Window(2, 10), True),
        ({**LEGO, "repaint_end_s": 11}, Window(0, 10), True),
    ],
)
def test_the_window_on_ten_seconds(asked: dict[str, Any], window: Window | None, warned: bool) -> None:
    found, warnings = tasks.window_of(GenerationSpec(**asked), 10)
    assert found == window
    assert bool(warnings) == warned


@pytest.mark.parametrize("task", [REPAINT, LEGO])
def test_a_window_past_the_end_is_refused(task: dict[str, Any]) -> None:
    spec = GenerationSpec(**task, repaint_start_s=10, repaint_end_s=12)
    with pytest.raises(InvalidSpec, match="less than the source's length") as refused:
        tasks.window_of(spec, 10)
    assert refused.value.field == "repaint_start_s"


@pytest.mark.parametrize(
    ("window", "frames"),
    [
        ((0, 1), (0, 25)),
        ((0.28, 0.57), (7, 15)),
        ((2.01, 2.02), (50, 51)),
        ((9.99, 10), (249, 250)),
        ((0, 99), (0, 250)),
    ],
)
def test_the_model_gets_whole_frames(window: tuple[float, float], frames: tuple[int, int]) -> None:
    assert tasks.window_frames(Window(*window), 250, GRID) == frames
    assert tasks.window_frames(None, 250, GRID) is None


@pytest.mark.parametrize(
    ("asked", "samples", "frames"),
    [
        ({"duration_s": 2.2}, None, 56),  # 55.00000000000001 of them, as the stock pipeline counts
        ({"duration_s": 2.0}, None, 50),
        (REPAINT, 1, 1),
        (REPAINT, 57_600, 30),  # 1.2 s, 30.000000000000004 frames by their seconds
        (REPAINT, 57_601, 31),
        ({"audio_codes": "<|audio_code_0|>" * 3}, None, 15),
    ],
)
def test_how_many_frames_a_song_has(asked: dict[str, Any], samples: int | None, frames: int) -> None:
    source = None if samples is None else np.zeros((2, samples), np.float32)
    assert tasks.frames_of(SongRequest(GenerationSpec(**asked), 0, source), GRID) == frames


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({}, None),
        ({"cover_strength": 0.3}, None),
        ({"task": "cover", "source_audio": "a"}, None),
        ({"task": "cover", "source_audio": "a", "cover_strength": 0.5, "steps": 8}, 4),
        ({"task": "cover", "source_audio": "a", "cover_strength": 0.99, "steps": 8}, 7),
        ({"task": "cover", "source_audio": "a", "cover_strength": 0.0}, 0),
        ({"audio_codes": "<|audio_code_1|>", "cover_strength": 0.5, "timesteps": (1.0, 0.7, 0.3)}, 1),
    ],
)
def test_for_how_many_steps_a_cover_follows_its_source(asked: dict[str, Any], steps: int | None) -> None:
    spec = GenerationSpec(**asked)
    assert tasks.source_steps(spec, fill_in(spec, turbo=False)[0]) == steps


@pytest.mark.parametrize(
    ("asked", "argument", "value"),
    [
        ({"timesteps": (1.0, 0.5)}, "timesteps", [1.0, 0.5]),
        ({"cfg_start": 0.1, "cfg_end": 0.9}, "cfg_interval_end", 0.9),
        ({"steps": 12}, "num_inference_steps", 12),
    ],
)
def test_the_pipelines_arguments(asked: dict[str, Any], argument: str, value: object) -> None:
    spec = GenerationSpec(**asked)
    assert tasks.shared_arguments(spec, fill_in(spec, turbo=False)[0])[argument] == value


def test_a_reference_is_checked_as_well() -> None:
    with pytest.raises(InvalidAudio, match="reference audio holds samples of nan"):
        tasks.length_s(SongRequest(GenerationSpec(), 0, reference=audio(1) * np.float32("nan")), GRID)


def test_the_words_around_the_caption() -> None:
    spec = GenerationSpec(bpm=90, key_scale="F#minor", time_signature="6/8", vocal_language="ja-JP", lyrics=" \n")
    reported = {"bpm": 90, "keyscale": "F# minor", "timesignature": "6", "audio_duration": 5.0}
    assert tasks.metadata_of(spec, 5.0) == reported
    assert tasks.language_of(spec) == "ja"
    assert tasks.lyrics_of(spec) == "[Instrumental]"
    nothing = {"bpm": None, "keyscale": None, "timesignature": None, "audio_duration": 5.0}
    assert tasks.metadata_of(GenerationSpec(), 5.0) == nothing
