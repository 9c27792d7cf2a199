"""ACE-Step 1.5's answers, shape by shape: these dictionaries are the contract with its clients."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from api.dialects.acestep import answers, inventory, samples
from api.dialects.acestep.names import song_named, song_url
from api.dialects.acestep.routes import task_ids_of
from api.dialects.acestep.table import convert, record_of, warnings
from api.dialects.body import Body
from serinette.errors import NotFound
from serinette.job import Job, JobError, JobStatus, Progress, Stage
from serinette.presence import WorkerStage
from tests.unit import dialect_jobs
from tests.unit.dialect_jobs import AT, ID, pool, result, worker

BODY = {"prompt": "upbeat pop song", "lyrics": "Hello world", "bpm": 119.7, "key_scale": "C Major", "thinking": True}
ADJUSTED = "bpm: 119.7 is taken for 120"


def job(status: JobStatus, **changes: Any) -> Job:
    converted = convert(BODY, {}, frozenset())
    songs = (dialect_jobs.artifact(0, 12345, 30.0), dialect_jobs.artifact(1, 12346, 30.0))
    done = result(*songs, model="acestep-v15-turbo", warning="duration_s: ignored, the source gives the length")
    return dialect_jobs.job(status, done, **({"spec": converted.spec(), "dialect": record_of(converted)} | changes))


def record(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The one record in an entry's JSON string."""
    assert isinstance(entry["result"], str)
    [only] = json.loads(entry["result"])
    return dict(only)


def test_a_task_is_released_as_documented() -> None:
    assert answers.released(job(JobStatus.QUEUED, position=3)) == {
        "task_id": ID,
        "status": "queued",
        "queue_position": 3,
        "warnings": [ADJUSTED],
    }
    assert answers.released(job(JobStatus.RUNNING))["queue_position"] == 0


def test_a_song_of_two_as_documented() -> None:
    entry = answers.answer(ID, job(JobStatus.SUCCEEDED))
    answered = json.loads(entry.pop("result"))
    assert entry == {"task_id": ID, "status": 1, "progress_text": "Succeeded"}
    warned = [ADJUSTED, "audio_duration: ignored, the source gives the length"]
    assert answered[1] == {
        "file": f"/v1/audio?path={ID}-1.mp3",
        "wave": "",
        "status": 1,
        "create_time": int(AT.timestamp()),
        "env": "production",
        "prompt": "upbeat pop song",
        "lyrics": "Hello world",
        "metas": {
            "bpm": 120,
            "duration": 30.0,
            "genres": "",
            "keyscale": "C major",
            "timesignature": "",
            "prompt": "upbeat pop song",
            "lyrics": "Hello world",
        },
        "generation_info": "\n".join(
            [
                "acestep-v15-turbo: 8 steps, shift 3, guidance 1",
                "2.0 s generated, 0.1 s encoded, 1.0 s waited",
                *warned,
            ]
        ),
        "seed_value": "12345,12346",
        "lm_model": "",
        "dit_model": "acestep-v15-turbo",
        "progress": 1.0,
        "stage": "succeeded",
        "error": None,
        "warnings": warned,
    }
    assert answered[0] == answered[1] | {"file": f"/v1/audio?path={ID}-0.mp3"}


STEP = Progress(stage=Stage.DENOISING, step=4, steps=8, at=AT)


@pytest.mark.parametrize(
    ("changes", "progress", "stage", "text"),
    [
        ({"status": JobStatus.QUEUED}, 0.0, "queued", "Queued"),
        (
            {"status": JobStatus.QUEUED, "waiting_for": "2 jobs ahead of it in lane normal"},
            0.0,
            "queued",
            "Waiting for 2 jobs ahead of it in lane normal",
        ),
        ({"status": JobStatus.RUNNING}, 0.0, "running", "Running"),
        ({"status": JobStatus.RUNNING, "progress": STEP}, 0.45, "denoising", "Denoising, step 4 of 8"),
        (
            {
                "status": JobStatus.RUNNING,
                "progress": Progress(stage=Stage.WAITING_FOR_ENGINE, at=AT),
                "waiting_for": "the model, which is loading",
            },
            0.0,
            "waiting_for_engine",
            "Waiting for the model, which is loading",
        ),
        (
            {"status": JobStatus.RUNNING, "progress": Progress(stage=Stage.DECODING, at=AT)},
            0.85,
            "decoding",
            "Decoding",
        ),
    ],
)
def test_a_task_on_its_way_has_its_own_progress(
    changes: dict[str, Any], progress: float, stage: str, text: str
) -> None:
    entry = answers.answer(ID, job(**changes))
    answered = record(entry)
    assert (entry["status"], answered["status"], answered["file"], answered["error"]) == (0, 0, "", None)
    assert "error" not in entry
    assert (answered["progress"], answered["stage"], entry["progress_text"]) == (progress, stage, text)


@pytest.mark.parametrize(
    ("status", "error", "answered"),
    [
        (JobStatus.FAILED, JobError(code="timeout", message="it ran longer than 10 s"), "it ran longer than 10 s"),
        (JobStatus.FAILED, JobError(code="invalid_spec", message="repaint_start_s: late"), "repainting_start: late"),
        (JobStatus.FAILED, None, "the task failed without saying why"),
        (JobStatus.CANCELED, None, "the task was canceled"),
    ],
)
def test_a_failure_says_why_in_every_place_where_clients_look(
    status: JobStatus, error: JobError | None, answered: str
) -> None:
    entry = answers.answer(ID, job(status, error=error))
    assert (entry["status"], entry["error"], entry["progress_text"]) == (2, answered, answered)
    assert (record(entry)["status"], record(entry)["stage"], record(entry)["error"]) == (2, "failed", answered)


def test_an_unknown_task_does_not_look_as_if_it_waited() -> None:
    entry = answers.answer("unknown", None)
    assert (entry["task_id"], entry["status"]) == ("unknown", 2)
    assert (record(entry)["stage"], record(entry)["file"]) == ("failed", "")
    assert record(entry)["error"] == entry["error"] == answers.UNKNOWN


def test_a_job_that_came_by_another_dialect_is_answered_all_the_same() -> None:
    entry = answers.answer(ID, job(JobStatus.SUCCEEDED, dialect={"sent": "{}"}))
    assert json.loads(entry["result"])[0]["warnings"] == ["audio_duration: ignored, the source gives the length"]


def test_a_song_is_named_by_a_token_and_found_by_nothing_else() -> None:
    url = song_url(ID, dialect_jobs.artifact(1, 7, 30.0))
    assert url == f"/v1/audio?path={ID}-1.mp3"
    for path in (f"{ID}-1.mp3", url, f"http://host{url}"):
        assert song_named(path) == (ID, 1)
    for path in ("", "/etc/passwd", f"../{ID}-1.mp3", f"{ID}-8.mp3", f"{ID}-1.exe", f"{ID}-1.mp3/", f"{ID}-1.mp3\n"):
        with pytest.raises(NotFound, match="Audio file not found"):
            song_named(path)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"task_id_list": ["a", "b"]}, ["a", "b"]),
        ({"task_id_list": '["a", "b"]'}, ["a", "b"]),
        ({"taskIdList": ["a"]}, ["a"]),
        ({"task_id_list": ID}, [ID]),
        ({"task_id_list": '"a"'}, ["a"]),
    ],
)
def test_the_tasks_that_a_request_names(sent: dict[str, Any], expected: list[str]) -> None:
    assert task_ids_of(Body(sent)) == expected


POOLS = (
    pool("default", worker("a", "turbo"), worker("b", None, stage=WorkerStage.LOADING), waiting=5, pace_s=8.456),
    pool(
        "slow",
        worker("c", "base", "slow"),
        worker("d", "turbo", "slow"),
        running=1,
        ended={("succeeded", ""): 90, ("failed", "timeout"): 4},
    ),
)


def test_models_as_documented() -> None:
    answered = inventory.inventory(POOLS, "default").model_dump(mode="json")
    tasks = ["text2music", "cover"]
    assert answered == {
        "models": [
            {"name": "base", "is_default": False, "is_loaded": True, "supported_task_types": tasks},
            {"name": "turbo", "is_default": True, "is_loaded": True, "supported_task_types": tasks},
        ],
        "default_model": "turbo",
        "lm_models": [],
        "loaded_lm_model": None,
        "llm_initialized": False,
    }
    assert inventory.inventory((), "default").default_model is None


def test_stats_as_documented() -> None:
    assert inventory.stats(POOLS, "default", 500) == {
        "jobs": {"total": 100, "queued": 5, "running": 1, "succeeded": 90, "failed": 4},
        "queue_size": 5,
        "queue_maxsize": 500,
        "avg_job_seconds": 8.46,
    }
    assert inventory.stats((), "default", 500)["avg_job_seconds"] == 0.0


def test_health_as_documented_and_as_newer_servers_answer_it() -> None:
    answered = inventory.health(inventory.inventory(POOLS, "default"))
    assert (answered["status"], answered["service"]) == ("ok", "ACE-Step API")
    assert (answered["models_initialized"], answered["llm_initialized"], answered["loaded_model"]) == (
        True,
        False,
        "turbo",
    )
    none = inventory.health(inventory.inventory((), "default"))
    assert (none["status"], none["models_initialized"], none["loaded_model"]) == ("ok", False, None)


def test_init_is_answered_by_what_is_there() -> None:
    held, none = inventory.inventory(POOLS, "default"), inventory.inventory((), "default")
    assert inventory.cannot_initialize(held, None, init_llm=False) is None
    assert inventory.cannot_initialize(held, "base", init_llm=False) is None
    assert "none has acestep-v15-sft; held: base, turbo" in str(
        inventory.cannot_initialize(held, "acestep-v15-sft", init_llm=False)
    )
    assert "none has one" in str(inventory.cannot_initialize(held, "base", init_llm=True))
    assert "none has one yet" in str(inventory.cannot_initialize(none, None, init_llm=False))
    done = inventory.initialized(held, "base", 2)
    assert (done["slot"], done["loaded_model"], done["loaded_lm_model"]) == (2, "base", None)
    assert "Nothing was reloaded" in inventory.reinitialized(held)["message"]


@pytest.mark.parametrize("sample", [*samples.SIMPLE, *samples.CUSTOM])
def test_a_sample_can_be_sent_as_it_is(sample: samples.Sample) -> None:
    converted = convert(sample.documented(), {}, frozenset())
    made = converted.spec()
    assert (made.prompt, made.duration_s, made.bpm) == (sample.caption, sample.duration_s, sample.bpm)
    assert (made.key_scale, made.vocal_language) == (sample.key_scale, sample.language)
    assert warnings(converted) == ["without effect here: think"]


def test_samples_have_what_each_mode_wants() -> None:
    simple, custom = samples.random_sample("simple_mode"), samples.random_sample("custom_mode")
    assert (simple["description"], simple["instrumental"]) == (simple["caption"], True)
    assert custom["lyrics"]
    assert "description" not in custom
