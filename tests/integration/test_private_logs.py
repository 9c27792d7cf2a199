"""Prompts and lyrics are in no log: of no process, at no level, however a song goes and whatever is refused."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.processes import eventually
from tests.stack import running

CANARY = "xylophone-quagmire"
SONG = {"prompt": f"jazz {CANARY}", "lyrics": f"la la {CANARY}", "duration_s": 1}


def test_prompts_and_lyrics_are_in_no_log(tmp_path: Path) -> None:
    shared = {"SERINETTE_LOG_LEVEL": "DEBUG", "SERINETTE_INTERVAL_S": "0.2"}
    engine = {"SERINETTE_ENGINE_MODULE": "tests.engines"}
    with running(tmp_path, shared=shared, worker=engine) as stack, httpx.Client(base_url=stack.url) as http:
        failing = {**SONG, "prompt": f"nan {CANARY}"}
        jobs = [http.post("/v1/jobs", json=song).json()["id"] for song in (SONG, failing)]
        jobs.append(http.post("/release_task", json={**SONG, "batch_size": 1}).json()["data"]["task_id"])
        jobs.append(http.post("/generate_music_async", json={**SONG, "audio_duration": 1}).json()["request_id"])
        batch = http.post("/v1/batches", json={"specs": [SONG]}).json()["id"]
        for path, body in (
            ("/v1/jobs", {**SONG, CANARY: 1}),
            ("/v1/jobs", {**SONG, "steps": CANARY}),
            ("/v1/jobs", {**SONG, "model": CANARY}),
            ("/v1/batches", {"specs": [{**SONG, "steps": 0}]}),
            ("/release_task", {**SONG, "key_scale": [CANARY]}),
            ("/generate_music", {**SONG, "infer_step": CANARY}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": CANARY}], "bpm": CANARY}),
        ):
            assert http.post(path, json=body).is_client_error, path

        def over() -> bool:
            states = [http.get(f"/v1/jobs/{job_id}").json()["status"] for job_id in jobs]
            return {*states, http.get(f"/v1/batches/{batch}").json()["status"]} <= {"succeeded", "failed", "completed"}

        assert eventually(over, 60), "\n".join(http.get(f"/v1/jobs/{job_id}").text for job_id in jobs)
        statuses = [http.get(f"/v1/jobs/{job_id}").json()["status"] for job_id in jobs]
        assert sorted(statuses) == ["failed", "succeeded", "succeeded", "succeeded"]
    logs = {path: path.read_text(errors="replace") for path in tmp_path.rglob("*.log")}
    assert {path.stem for path in logs} >= {"gateway", "controller", "worker"}
    assert all(jobs[0] in logs[tmp_path / f"{name}.log"] for name in ("gateway", "worker"))
    assert {path: line for path, text in logs.items() for line in text.splitlines() if CANARY in line} == {}
