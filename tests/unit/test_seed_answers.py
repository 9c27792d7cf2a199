"""The seed's answers, shape by shape: these dictionaries are the contract with its clients."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.dialects.seed import answers
from api.dialects.seed.request import GenerateMusicRequest
from api.dialects.seed.table import convert, record_of
from api.queue import Pool
from serinette.errors import InvalidSpec
from serinette.job import Job, JobError, JobStatus
from serinette.names import Lane
from serinette.presence import Presence, WorkerStage
from serinette.spec import GenerationSpec
from tests.unit import dialect_jobs
from tests.unit.dialect_jobs import AT, ID, TIMINGS, artifact, pool, result


def job(status: JobStatus, **changes: Any) -> Job:
    converted = convert(
        GenerateMusicRequest.model_validate(
            {"format": "mp3", "audio_duration": 15, "prompt": "jazz", "lyrics": "", "manual_seeds": "12,34"}
            | {"omega_scale": 10.0}
            | changes.pop("body", {})
        )
    )
    done = result(artifact(0, 12, 15.0), model="bundled", warning="guidance_scale: turbo has none")
    return dialect_jobs.job(status, done, **({"spec": converted.spec(), "dialect": record_of(converted)} | changes))


PARAMS = {
    "task": "text2music",
    "format": "mp3",
    "prompt": "jazz",
    "lyrics": "",
    "audio_duration": 15.0,
    "cfg_start": 0.0,
    "cfg_end": 1.0,
    "actual_seeds": [12],
    "infer_step": 8,
    "guidance_scale": 1.0,
    "shift": 3.0,
    "sample_rate": 48_000,
    "model": "bundled",
    "model_revision": "r1",
    "timings": TIMINGS.model_dump(),
    "warnings": ["guidance_scale: turbo has none"],
    "sent": {"format": "mp3", "audio_duration": 15.0, "manual_seeds": "12,34", "omega_scale": 10.0},
    "adjusted": [
        {
            "field": "manual_seeds",
            "sent": "12,34",
            "used": 12,
            "reason": "one song takes one seed: the first",
        }
    ],
    "ignored": ["omega_scale"],
}


def test_status_before_the_end() -> None:
    assert answers.status(job(JobStatus.QUEUED)) == {
        "request_id": ID,
        "status": "pending",
        "created_at": AT.timestamp(),
        "started_at": None,
        "completed_at": None,
    }
    processing = answers.status(job(JobStatus.RUNNING))
    assert (processing["status"], processing["started_at"]) == ("processing", AT.timestamp() + 1)
    assert processing["completed_at"] is None


def test_status_of_a_song() -> None:
    assert answers.status(job(JobStatus.SUCCEEDED)) == {
        "request_id": ID,
        "status": "completed",
        "created_at": AT.timestamp(),
        "started_at": AT.timestamp() + 1,
        "completed_at": AT.timestamp() + 4,
        "result": {"success": True, "audio_path": "/result/" + ID, "params_json": PARAMS},
    }


def test_status_of_a_song_that_was_asked_for_as_bytes() -> None:
    asked = answers.status(job(JobStatus.SUCCEEDED, body={"return_file_data": True}))["result"]
    params = asked.pop("params_json")
    assert params["sent"]["return_file_data"] is True
    assert asked == {
        "success": True,
        "content_type": "audio/mpeg",
        "format": "mp3",
        "audio_size_bytes": 360_000,
        "message": f"Audio data ready for download. Use /result/{ID} to download.",
    }


@pytest.mark.parametrize(
    ("status", "error", "answered"),
    [
        (JobStatus.FAILED, JobError(code="timeout", message="it ran longer than 10 s"), "it ran longer than 10 s"),
        (JobStatus.FAILED, None, "the job failed without saying why"),
        (JobStatus.CANCELED, None, "Cancelled by user"),
        (JobStatus.CANCELED, JobError(code="canceled", message="flag"), "Cancelled by user"),
    ],
)
def test_status_of_a_failure(status: JobStatus, error: JobError | None, answered: str) -> None:
    failed = job(status, error=error)
    answer = answers.status(failed)
    assert (answer["status"], answer["error"]) == ("failed", answered)
    assert answer["completed_at"] == AT.timestamp() + 4
    assert "result" not in answer
    assert answers.not_completed(failed) == {"detail": "Request is failed, not completed", "error": answered}


def test_result_before_the_song() -> None:
    assert answers.not_completed(job(JobStatus.QUEUED)) == {"detail": "Request is pending, not completed"}
    assert answers.not_completed(job(JobStatus.RUNNING)) == {"detail": "Request is processing, not completed"}


def test_the_json_result() -> None:
    answer = answers.song_with_facts(job(JobStatus.SUCCEEDED))
    assert (answer["request_id"], answer["sample_rate"], answer["success"]) == (ID, 48_000, True)


@pytest.mark.parametrize(
    ("ours", "field", "words"),
    [
        ("source_audio: there is no upload x", "ref_audio_input", "there is no upload x"),
        ("steps: at most 20", "infer_step", "at most 20"),
        ("duration_s: this model generates at most 240 s", "audio_duration", "this model generates at most 240 s"),
        ("lora: there is no choir; cover_strength aside", "lora_name_or_path", "there is no choir; ref_audio_strength"),
        ("prompt: too long", "prompt", "too long"),
    ],
)
def test_a_refusal_names_the_clients_field_not_ours(ours: str, field: str, words: str) -> None:
    refused = answers.refuse(InvalidSpec(ours, field=ours.partition(":")[0]))
    assert refused is not None
    [complaint] = json.loads(bytes(refused.body))["detail"]
    assert complaint["loc"] == ["body", field]
    assert complaint["msg"].startswith(words)


def test_a_cover_reports_its_source_and_strength() -> None:
    body = {"audio2audio_enable": True, "ref_audio_input": "up", "ref_audio_strength": 0.25}
    answered = answers.params(job(JobStatus.SUCCEEDED, body=body))
    assert (answered["task"], answered["source_audio"], answered["ref_audio_strength"]) == ("cover", "up", 0.25)


def test_steps_and_guidance_that_the_checkpoint_changed_are_reported() -> None:
    """The worker reports 8 steps with guidance 1."""
    body = {"infer_step": 60, "guidance_scale": 15.0}
    adjusted = answers.params(job(JobStatus.SUCCEEDED, body=body))["adjusted"]
    assert [(each["field"], each["sent"], each["used"]) for each in adjusted[1:]] == [
        ("infer_step", 60, 8),
        ("guidance_scale", 15.0, 1.0),
    ]
    assert answers.params(job(JobStatus.RUNNING, body=body))["adjusted"] == adjusted[:1], "not known yet"
    honoured = answers.params(job(JobStatus.SUCCEEDED, body={"infer_step": 8, "guidance_scale": 1}))
    assert honoured["adjusted"] == adjusted[:1]


def test_a_job_that_came_by_another_dialect_is_answered_all_the_same() -> None:
    spec = GenerationSpec(prompt="x", seed=3)
    foreign = answers.status(job(JobStatus.SUCCEEDED, spec=spec, dialect={}))["result"]
    assert foreign["audio_path"] == "/result/" + ID
    assert (foreign["params_json"]["sent"], foreign["params_json"]["ignored"]) == ({}, [])


def test_the_file_is_named_for_the_second_it_was_made_in() -> None:
    second = int(AT.timestamp()) + 4
    assert answers.file_name(job(JobStatus.SUCCEEDED)) == f"generated_music_{second}.mp3"


def test_the_queue() -> None:
    pools = [
        Pool("a", {Lane.HIGH: 1, Lane.LOW: 2}, running=1, ended={("succeeded", ""): 5, ("failed", "timeout"): 1}),
        Pool("b", {Lane.NORMAL: 1}, ended={("canceled", ""): 1}),
    ]
    assert answers.queue(pools) == {
        "queue_size": 4,
        "status_counts": {"pending": 4, "processing": 1, "completed": 5, "failed": 2},
        "total_requests": 12,
    }


def worker(stage: WorkerStage, *, model: bool) -> Presence:
    message = "reading weights" if stage is WorkerStage.LOADING else ""
    return dialect_jobs.worker(f"w-{stage}", "bundled" if model else None, stage=stage, message=message)


@pytest.mark.parametrize(
    ("workers", "loaded"),
    [
        ([], False),
        ([worker(WorkerStage.STARTING, model=False)], False),
        ([worker(WorkerStage.LOADING, model=False)], False),
        ([worker(WorkerStage.READY, model=True)], True),
        ([worker(WorkerStage.LOADING, model=False), worker(WorkerStage.READY, model=True)], True),
    ],
)
def test_health_and_initialize_say_whether_a_worker_has_its_model(workers: list[Presence], loaded: bool) -> None:
    health = answers.health([pool("default", *workers)])
    assert (health["status"], health["pipeline_loaded"]) == ("healthy", loaded)
    assert [each["stage"] for each in health["workers"]] == [each.stage.value for each in workers]
    initialized = answers.initialized([pool("default", *workers)])
    assert initialized["success"] is loaded
    assert initialized["message" if loaded else "error_message"]


def test_a_worker_that_loads_says_what_it_does() -> None:
    pools = [pool("default", worker(WorkerStage.LOADING, model=False))]
    [listed] = answers.health(pools)["workers"]
    assert (listed["stage"], listed["message"], listed["model"]) == ("loading", "reading weights", None)
    assert "w-loading is loading" in answers.initialized(pools)["error_message"]


def test_the_sample_is_a_body_that_we_accept_whole() -> None:
    sample = answers.sample()["sample"]
    converted = convert(GenerateMusicRequest.model_validate(sample))
    assert (converted.spec().duration_s, converted.spec().seed) == (30.0, 42)
    assert converted.ignored == []
