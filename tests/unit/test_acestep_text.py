"""ACE-Step 1.5's calls that are answered by a planner: a job that a slot ends while the call waits for it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.settings import GatewaySettings
from serinette.job import JobError, now
from serinette.presence import announce, withdraw
from serinette.spec import LEFT_TO_TEXT, GenerationSpec, Planned
from tests.gateways import HandSlot
from tests.unit.dialect_jobs import silence, worker
from tests.unit.test_acestep_routes import client, data, refusal, settings, slot

__all__ = ["client", "settings", "slot"]


@pytest.fixture
def planner(settings: GatewaySettings, slot: HandSlot) -> Iterator[None]:
    """A worker with one is up."""
    up = worker("w", "acestep-v15-turbo", started_at=now())
    assert up.model
    held = up.model.model_copy(update={"planner": "acestep-5Hz-lm"})
    announce(slot.jobs.redis, settings.keys, up.model_copy(update={"model": held}))
    yield
    withdraw(slot.jobs.redis, settings.keys, "w")


def worked_on(client: TestClient, slot: HandSlot, end: Callable[[str], object], call: Callable[[], Any]) -> Any:
    """The answer to a call that waits for its job, whose end a slot decides meanwhile."""
    newest = client.get("/v1/jobs", params={"limit": 1}).json()["jobs"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call)
        while (jobs := client.get("/v1/jobs", params={"limit": 1}).json()["jobs"]) == newest:
            assert not answer.done() or answer.result() is None
            time.sleep(0.01)
        assert slot.claim(jobs[0]["id"])
        end(jobs[0]["id"])
        return answer.result(timeout=30)


@pytest.mark.usefixtures("planner")
def test_what_a_planner_writes_is_answered(client: TestClient, slot: HandSlot) -> None:
    assert data(client.get("/v1/model_inventory"))["loaded_lm_model"] == "acestep-5Hz-lm"
    assert data(client.post("/v1/init", json={"init_llm": True}))["llm_initialized"]
    written = Planned(caption="A waltz.", lyrics="[Verse]\nla", bpm=92, duration_s=120, vocal_language="fr")
    wish = {"query": "a waltz", "key_scale": "C", "temperature": 0.5}
    ended = worked_on(
        client, slot, lambda job_id: slot.write(job_id, written), lambda: client.post("/v1/create_sample", json=wish)
    )
    answered = data(ended)
    assert (answered["caption"], answered["lyrics"], answered["bpm"]) == ("A waltz.", "[Verse]\nla", 92)
    assert (answered["duration"], answered["vocal_language"], answered["degraded"]) == (120, "fr", False)
    (job,) = client.get("/v1/jobs", params={"limit": 1}).json()["jobs"]
    asked = client.get(f"/v1/jobs/{job['id']}").json()
    assert asked["spec"].items() >= {"task": "write", "key_scale": "C major", "lm_temperature": 0.5}.items()
    assert asked["result"]["texts"][0]["caption"] == "A waltz."
    refused = client.get(f"/v1/jobs/{job['id']}/audio")
    assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
    assert "is of task write and has no song" in refused.json()["detail"]

    refusal_of_worker = JobError(code="unsupported", message="task: format needs a planner")
    failed = worked_on(
        client,
        slot,
        lambda job_id: slot.fail(job_id, refusal_of_worker),
        lambda: client.post("/format_input", json={"prompt": "pop", "lyrics": "la"}),
    )
    answered = data(failed)
    assert (answered["caption"], answered["lyrics"], answered["degraded"]) == ("pop", "la", True)
    assert "format needs a planner" in answered["warnings"][0]


def test_a_full_analysis_is_answered_what_was_heard(client: TestClient, slot: HandSlot) -> None:
    assert "src_audio_path: task describe needs it" in refusal(
        client.post("/release_task", json={"full_analysis_only": True}), 400
    )
    form, files = {"full_analysis_only": "true", "audio_duration": "30"}, {"ctx_audio": ("song.wav", silence())}
    task_id = data(client.post("/release_task", data=form, files=files))["task_id"]
    spec = client.get(f"/v1/jobs/{task_id}").json()["spec"]
    assert (spec["task"], spec["variations"]) == ("describe", 1)
    assert spec["source_audio"]
    assert slot.claim(task_id)
    slot.write(task_id, Planned(caption="A waltz.", lyrics="la", bpm=92, duration_s=1.2, time_signature="3"))
    (entry,) = data(client.post("/query_result", json={"task_id_list": [task_id]}))
    (heard,) = json.loads(entry["result"])
    assert (entry["status"], heard["status_message"]) == (1, "Full Hardware Analysis Success")
    said = {"bpm": 92, "keyscale": "", "timesignature": "3", "duration": 1.2, "genre": "", "language": "unknown"}
    assert heard.items() >= {**said, "prompt": "A waltz.", "lyrics": "la", "file": ""}.items()
    assert heard["metas"].items() >= {"bpm": 92, "duration": 1.2, "prompt": "A waltz."}.items()


@pytest.mark.parametrize("given", [{}, {"duration_s": 60, "vocal_language": "en"}])
def test_a_text_job_sent_again_asks_for_the_same(client: TestClient, slot: HandSlot, given: dict[str, Any]) -> None:
    """What was left to the planner is not among what is shown, live, ended or from the store; what was given is."""
    wish = {"task": "write", "prompt": "a waltz", "seed": 3, **given}
    job_id = client.post("/v1/jobs", json=wish).json()["id"]

    def shown() -> dict[str, Any]:
        spec: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()["spec"]
        assert {name: spec[name] for name in LEFT_TO_TEXT & spec.keys()} == given
        return spec

    assert GenerationSpec(**shown()).digest() == GenerationSpec(**wish).digest()
    assert slot.claim(job_id)
    slot.write(job_id, Planned(caption="A waltz."))
    shown()
    slot.shrink(job_id)
    assert GenerationSpec(**shown()).digest() == GenerationSpec(**wish).digest()
