"""What a task asks of the pipeline, and what a source's length allows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpu_worker.engine import tasks
from gpu_worker.engine.base import SongRequest
from gpu_worker.engine.sampling import fill_in
from gpu_worker.engine.tasks import Grid, Window
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
    ("asked", "source", "error", "words"),
    [
        (REPAINT, audio(2, channels=1), InvalidAudio, "1 channels, the model takes 2"),
        (REPAINT, None, InvalidAudio, "did not come"),
        (REPAINT, audio(601), InvalidAudio, "at most 600 s"),
        ({"audio_codes": "none at all"}, None, InvalidSpec, "holds no"),
        ({"audio_codes": "<|audio_code_64000|>"}, None, InvalidSpec, "0 to 63999"),
    ],
)
def test_what_cannot_be_sung_is_refused(
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


@pytest.mark.parametrize(("window", "frames"), [((0, 1), (0, 25)), ((0.28, 0.57), (7, 15)), ((2.01, 2.02), (50, 51))])
def test_the_pipeline_hears_whole_frames(window: tuple[float, float], frames: tuple[int, int]) -> None:
    arguments = tasks.window_arguments(Window(*window), GRID)
    # The pipeline's own arithmetic (_build_chunk_mask).
    assert (int(arguments["repainting_start"] * 25.0), int(arguments["repainting_end"] * 25.0)) == frames


@pytest.mark.parametrize(
    ("asked", "argument", "value"),
    [
        ({"audio_codes": "<|audio_code_1|>"}, "task_type", "cover"),
        ({"task": "extract", "source_audio": "a", "track": "vocals"}, "track_name", "vocals"),
        (
            {"task": "complete", "source_audio": "a", "tracks": ("bass", "drums")},
            "complete_track_classes",
            ["bass", "drums"],
        ),
        ({"task": "cover", "source_audio": "a", "cover_strength": 0.3}, "audio_cover_strength", 0.3),
        ({"cover_strength": 0.3}, "audio_cover_strength", 1.0),
        ({"track": "vocals"}, "track_name", None),
        ({"timesteps": (1.0, 0.5)}, "timesteps", [1.0, 0.5]),
        ({"cfg_start": 0.1, "cfg_end": 0.9}, "cfg_interval_end", 0.9),
        ({**REPAINT, "audio_codes": "<|audio_code_1|>"}, "audio_codes", None),
    ],
)
def test_the_pipelines_arguments(asked: dict[str, Any], argument: str, value: object) -> None:
    spec = GenerationSpec(**asked)
    assert tasks.shared_arguments(spec, fill_in(spec, turbo=False)[0])[argument] == value


def test_the_words_around_the_caption() -> None:
    spec = GenerationSpec(bpm=90, key_scale="F#minor", time_signature="6/8", vocal_language="ja-JP", lyrics=" \n")
    told = {"bpm": 90, "keyscale": "F# minor", "timesignature": "6", "audio_duration": 5.0}
    assert tasks.metadata_of(spec, 5.0) == told
    assert tasks.language_of(spec) == "ja"
    assert tasks.lyrics_of(spec) == "[Instrumental]"
    nothing = {"bpm": None, "keyscale": None, "timesignature": None, "audio_duration": 5.0}
    assert tasks.metadata_of(GenerationSpec(), 5.0) == nothing
