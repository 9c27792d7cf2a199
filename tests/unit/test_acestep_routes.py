"""ACE-Step 1.5's calls over HTTP, on a real Valkey and a directory, with no worker: all that a gateway alone can show.

Requests and answers are those of its documentation (API.md of the official repository).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from api.app import create_app
from api.dialects import DIALECTS
from api.dialects.acestep.routes import MAX_TASKS
from api.dialects.acestep.samples import SIMPLE
from api.problems import speaks_problems
from api.settings import GatewaySettings
from serinette.job import JobError, now
from serinette.presence import announce
from serinette.store import Store
from tests import servers
from tests.gateways import HandSlot
from tests.unit.dialect_jobs import silence, worker

NO_JOB = "5b0e1a4c-0f5c-4b55-8a54-6f4bb0a2a111"


@pytest.fixture(scope="module")
def settings(valkey_url: str, store_url: str) -> GatewaySettings:
    bounds = {"max_body_bytes": 65_536, "max_upload_bytes": 1_000_000, "max_waiting": 5_000}
    return GatewaySettings.model_validate({"redis_url": valkey_url, "store_url": store_url, **bounds})


@pytest.fixture(scope="module")
def client(settings: GatewaySettings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), "http://localhost", follow_redirects=False) as client:
        yield client


@pytest.fixture
def slot(settings: GatewaySettings) -> Iterator[HandSlot]:
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        yield HandSlot(redis, Store.open(settings), settings.keys)


def data(answer: Any) -> Any:
    """What the documented envelope holds."""
    assert answer.status_code == 200, answer.text
    envelope = answer.json()
    assert {name: envelope[name] for name in ("code", "error", "extra")} == {"code": 200, "error": None, "extra": None}
    assert abs(envelope["timestamp"] / 1000 - time.time()) < 60
    return envelope["data"]


def refusal(answer: Any, status: int) -> str:
    """Why, as answered both to clients that read `detail` and to those that read `error`."""
    assert answer.status_code == status, answer.text
    answered = answer.json()
    assert (answered["data"], answered["code"], answered["error"]) == (None, status, answered["detail"])
    return str(answered["detail"])


def released(client: TestClient, **body: Any) -> str:
    return str(data(client.post("/release_task", json={"batch_size": 1, **body}))["task_id"])


def asked(client: TestClient, *task_ids: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = data(client.post("/query_result", json={"task_id_list": list(task_ids)}))
    return entries


def song(client: TestClient, slot: HandSlot, *songs: bytes) -> str:
    task_id = released(client)
    slot.claim(task_id)
    slot.succeed(task_id, list(songs))
    return task_id


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {"prompt": "upbeat pop song", "inference_steps": 8, "batch_size": 1}},
        {"data": {"prompt": "upbeat pop song", "inferenceSteps": "8", "batchSize": "1"}},
        {
            "files": {
                "caption": (None, "upbeat pop song"),
                "param_obj": (None, '{"inference_steps": 8, "batch_size": 1}'),
            },
        },
        {
            "content": '{"prompt": "upbeat pop song", "inference_steps": 8, "batch_size": 1}',
            "headers": {"Content-Type": "application/vnd.api+json"},
        },
        {"content": ' {"prompt": "upbeat pop song", "inference_steps": 8, "batch_size": 1}'},
        {
            "content": '{"prompt": "upbeat pop song", "inference_steps": 8, "batch_size": 1}',
            "headers": {"Content-Type": "text/plain; charset=utf-8"},
        },
        {"content": "prompt=upbeat+pop+song&inference_steps=8&batch_size=1"},
    ],
    ids=["json", "form", "multipart", "json of a kind", "json without a name", "json as text", "form without a name"],
)
def test_a_task_by_every_kind_of_body(client: TestClient, sent: dict[str, Any]) -> None:
    answered = data(client.post("/release_task", **sent))
    assert (answered["status"], answered["warnings"]) == ("queued", [])
    assert answered["queue_position"] >= 1
    job = client.get(f"/v1/jobs/{answered['task_id']}").json()
    assert (job["spec"]["prompt"], job["spec"]["steps"], job["spec"]["variations"]) == ("upbeat pop song", 8, 1)
    assert job["spec"]["seed"] >= 0


@pytest.mark.parametrize("field", ["param_obj", "metas", "track_classes", "task_type"])
def test_half_a_surrogate_pair_in_a_text_of_json_is_no_mistake_of_ours(client: TestClient, field: str) -> None:
    sent = {"prompt": "a", field: '{"\\ud800": 1}' if field != "track_classes" else '["\\ud800"]'}
    assert client.post("/release_task", json=sent).status_code < 500
    assert client.post("/query_result", json={"task_id_list": '["\\ud800"]'}).status_code < 500


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"content": b"{"}, 400, "Invalid JSON"),
        ({"content": b"[1]"}, 400, "must be an object"),
        ({"content": b'{"\\ud800": 1}'}, 400, "surrogates not allowed"),
        ({"content": b"null", "headers": {"Content-Type": "application/json"}}, 400, "must be an object"),
        ({"content": b"\xff=", "headers": {"Content-Type": "application/json"}}, 400, "Invalid JSON"),
        ({"content": b"[" * 60_000}, 400, "Invalid JSON"),
        ({"content": b"hello"}, 415, "Unsupported Content-Type: (missing)"),
        ({"content": b"hello", "headers": {"Content-Type": "text/plain"}}, 415, "text/plain"),
        ({"content": b"prompt=\xff"}, 400, "Invalid form"),
        ({"content": b"x=1&" * 300}, 400, "Invalid form"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
        ({"json": {"prompt": "x" * 70_000}}, 413, "65536"),
        ({"json": {"bpm": 1_000}}, 400, "bpm: "),
        ({"json": {"audio_duration": 9999}}, 400, "audio_duration: "),
        ({"json": {"task_type": "cover"}}, 400, "src_audio_path: "),
        ({"json": {"src_audio_path": "/etc/passwd", "task_type": "cover"}}, 400, "never a path"),
        ({"json": {"src_audio_path": "upload-unknown", "task_type": "cover"}}, 400, "src_audio_path: there is no"),
        ({"json": {"analysis_only": True}}, 501, "text is not analyzed here"),
        ({"json": {}, "headers": {"Idempotency-Key": "é".encode()}}, 400, "Idempotency-Key"),
    ],
)
def test_a_task_that_is_refused(client: TestClient, sent: dict[str, Any], status: int, words: str) -> None:
    before = data(client.get("/v1/stats"))["jobs"]["total"]
    assert words.lower() in refusal(client.post("/release_task", **sent), status).lower()
    assert data(client.get("/v1/stats"))["jobs"]["total"] == before


def test_an_empty_body_is_a_task_of_defaults(client: TestClient) -> None:
    task_id = data(client.post("/release_task"))["task_id"]
    assert client.get(f"/v1/jobs/{task_id}").json()["spec"]["variations"] == 2


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"ai_token": "any"}, {}),
        ({}, {"Authorization": "Bearer any"}),
        ({}, {"Authorization": "any"}),
        ({"ai_token": "one"}, {"Authorization": "Bearer another"}),
    ],
)
def test_without_keys_any_token_is_accepted_in_any_place(
    client: TestClient, body: dict[str, Any], headers: dict[str, str]
) -> None:
    answered = data(client.post("/release_task", json={"prompt": "x", **body}, headers=headers))
    assert answered["warnings"] == []
    query = {"task_id_list": [answered["task_id"]], **body}
    assert data(client.post("/query_result", json=query, headers=headers))[0]["status"] == 0
    assert data(client.get("/v1/stats", headers=headers))


def test_the_same_key_is_the_same_task(client: TestClient) -> None:
    sent: dict[str, Any] = {"json": {"prompt": "once"}, "headers": {"Idempotency-Key": "k1"}}
    first, second = (data(client.post("/release_task", **sent))["task_id"] for _ in range(2))
    assert first == second
    other = {**sent, "json": {"prompt": "twice"}}
    assert "Idempotency-Key" in refusal(client.post("/release_task", **other), 409)
    form: dict[str, Any] = {"data": {"task_type": "cover"}, "headers": {"Idempotency-Key": "k2"}}
    first, second = (
        data(client.post("/release_task", **form, files={"src_audio": ("a.wav", silence())}))["task_id"]
        for _ in range(2)
    )
    assert first == second


def test_many_tasks_are_asked_for_at_once(client: TestClient, slot: HandSlot) -> None:
    waits, runs, fails = released(client), released(client), released(client)
    done = song(client, slot, b"one", b"two")
    slot.claim(runs)
    slot.step(runs, 4)
    slot.claim(fails)
    slot.fail(fails, JobError(code="timeout", message="it ran longer than 10 s"))

    entries = asked(client, waits, runs, NO_JOB, fails, done, "../x", waits)
    assert [entry["task_id"] for entry in entries] == [waits, runs, NO_JOB, fails, done, "../x", waits]
    assert [entry["status"] for entry in entries] == [0, 0, 2, 2, 1, 2, 0]
    records = [json.loads(entry["result"]) for entry in entries]
    assert [len(each) for each in records] == [1, 1, 1, 1, 2, 1, 1]
    assert [each[0]["stage"] for each in records[:5]] == ["queued", "denoising", "failed", "failed", "succeeded"]
    assert records[1][0]["progress"] == 0.45
    assert entries[1]["progress_text"] == "Denoising, step 4 of 8"
    assert entries[3]["error"] == records[3][0]["error"] == "it ran longer than 10 s"

    client.post(f"/v1/jobs/{waits}/cancel")
    assert asked(client, waits)[0]["error"] == "the task was canceled"


@pytest.mark.parametrize("as_text", [False, True])
def test_tasks_are_asked_for_by_form_too(client: TestClient, as_text: bool) -> None:
    task_id = released(client)
    sent: dict[str, Any] = {"data": {"task_id_list": json.dumps([task_id])}}
    if as_text:
        sent = {"json": {"task_id_list": json.dumps([task_id])}}
    assert data(client.post("/query_result", **sent))[0]["task_id"] == task_id


@pytest.mark.parametrize("ids", [[], "[]", "null", " ", [None], [""], [["x"]], {"a": 1}, '{"a": 1}', 7])
def test_a_query_that_names_no_task_is_refused(client: TestClient, ids: Any) -> None:
    assert "task_id_list" in refusal(client.post("/query_result", json={"task_id_list": ids}), 400)


def test_too_many_tasks_at_once_are_refused(client: TestClient) -> None:
    assert asked(client, "x")[0]["task_id"] == "x"
    assert "task_id_list" in refusal(client.post("/query_result", json={"task_id": NO_JOB}), 400)
    assert len(asked(client, *["x"] * MAX_TASKS)) == MAX_TASKS
    refusal(client.post("/query_result", content=b'{"task_id_list": ["\\ud800"]}'), 400)
    many = {"task_id_list": ["x"] * (MAX_TASKS + 1)}
    assert str(MAX_TASKS) in refusal(client.post("/query_result", json=many), 400)


def test_a_song_is_fetched_by_its_token(client: TestClient, slot: HandSlot) -> None:
    task_id = song(client, slot, b"the first song", b"the second")
    first, second = json.loads(asked(client, task_id)[0]["result"])
    whole = client.get(first["file"])
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, b"the first song", "audio/mpeg")
    assert client.get(second["file"]).content == b"the second"
    part = client.get(first["file"], headers={"Range": "bytes=4-8"})
    assert (part.status_code, part.content) == (206, b"first")
    assert client.get(first["file"], headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
    head = client.head(first["file"])
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "14", b"")
    # As clients send it that take `file` for the path alone.
    assert client.get("/v1/audio", params={"path": first["file"]}).content == b"the first song"
    late = client.get(first["file"], headers={"Range": "bytes=99-"})
    assert (late.status_code, late.json()["detail"]) == (416, "Range: the file has 14 bytes")

    client.delete(f"/v1/jobs/{task_id}")
    refusal(client.get(first["file"]), 404)


def test_a_song_that_is_not_there(client: TestClient, settings: GatewaySettings) -> None:
    store = Path(settings.store_url.removeprefix("file://"))
    secret = store / "secret.mp3"
    store.mkdir(parents=True, exist_ok=True)
    secret.write_bytes(b"secret")
    for path in ("", str(secret), "/etc/passwd", "secret.mp3", f"{NO_JOB}-0.mp3", f"songs/default/{NO_JOB}/job.json"):
        refusal(client.get("/v1/audio", params={"path": path}), 404)
    refusal(client.get("/v1/audio"), 404)
    waits = released(client)
    assert "not ready" in refusal(client.get("/v1/audio", params={"path": f"{waits}-0.mp3"}), 409)


def test_files_that_no_field_reads_are_reported(client: TestClient) -> None:
    files = {name: ("song.wav", silence(), "audio/wav") for name in ("audio", "ctx_audio")}
    answer = data(client.post("/release_task", data={"prompt": "x"}, files=files))
    assert answer["warnings"] == [
        "src_audio_path: ignored, task text2music does not use it",
        "without effect here: audio",
    ]


@pytest.mark.parametrize(("source", "reference"), [("src_audio", "reference_audio"), ("ctx_audio", "ref_audio")])
def test_files_come_along_in_a_form(client: TestClient, source: str, reference: str) -> None:
    form = {"prompt": "remix this song", "task_type": "repaint", "src_audio_path": "/ignored.mp3"}
    files = {name: ("song.wav", silence(), "audio/wav") for name in (source, reference)}
    task_id = data(client.post("/release_task", data=form, files=files))["task_id"]
    spec = client.get(f"/v1/jobs/{task_id}").json()["spec"]
    assert spec["task"] == "repaint"
    for name in ("source_audio", "reference_audio"):
        assert client.get(f"/v1/uploads/{spec[name]}").json()["duration_s"] == 1.0
    # An upload by its id, and the same in another task.
    body = {"task_type": "cover", "src_audio_path": spec["source_audio"], "audio_cover_strength": 0.2}
    again = released(client, **body)
    assert client.get(f"/v1/jobs/{again}").json()["spec"]["cover_strength"] == 0.2


@pytest.mark.parametrize("cut", [2, 10, 44_100, 48_000 * 4 + 150])
def test_a_form_that_breaks_off_is_refused(client: TestClient, cut: int) -> None:
    files = {"reference_audio": ("song.wav", silence(), "audio/wav")}
    request = client.build_request("POST", "/release_task", data={"prompt": "x"}, files=files)
    kind = {"Content-Type": request.headers["content-type"]}
    answer = client.post("/release_task", content=request.read().rstrip()[:-cut], headers=kind)
    assert "breaks off" in refusal(answer, 400)


def test_a_file_of_no_use_is_not_kept(client: TestClient, settings: GatewaySettings) -> None:
    before = {each.key for each in Store.open(settings).list("uploads/")}
    files = {"src_audio": ("song.wav", silence(), "audio/wav")}
    answered = data(client.post("/release_task", data={"prompt": "x"}, files=files))
    assert answered["warnings"] == ["src_audio_path: ignored, task text2music does not use it"]
    assert {each.key for each in Store.open(settings).list("uploads/")} == before


def test_an_earlier_song_is_a_source_by_its_url(client: TestClient, slot: HandSlot) -> None:
    [record] = json.loads(asked(client, song(client, slot, b"song"))[0]["result"])
    task_id = released(client, task_type="cover", src_audio_path=record["file"])
    source = client.get(f"/v1/jobs/{task_id}").json()["spec"]["source_audio"]
    assert f"/v1/audio?path={source.replace('/', '-')}.mp3" == record["file"]


@pytest.mark.parametrize(
    ("files", "form", "status", "words"),
    [
        ({"src_audio": ("song.mp3", b"only words " * 100)}, {"task_type": "cover"}, 400, "src_audio: the file"),
        ({"ctx_audio": ("song.mp3", b"")}, {"task_type": "cover"}, 400, "ctx_audio: it is empty"),
        ({"ref_audio": ("song.mp3", b"")}, {}, 400, "ref_audio: it is empty"),
        ({"src_audio": ("song.wav", b"x" * 1_000_001)}, {"task_type": "cover"}, 413, "1000000"),
        ({"src_audio": ("song.wav", silence())}, {"task_type": "cover", "bpm": "9"}, 400, "bpm"),
        ({name: ("song.wav", silence()) for name in ("a", "b", "c")}, {}, 400, "files"),
    ],
)
def test_files_that_are_refused(
    client: TestClient, settings: GatewaySettings, files: Any, form: dict[str, str], status: int, words: str
) -> None:
    store = Store.open(settings)
    before = {each.key for each in store.list("uploads/")}
    assert words in refusal(client.post("/release_task", data=form, files=files), status).lower()
    assert {each.key for each in store.list("uploads/")} == before


def test_a_body_beyond_every_bound_is_refused_before_it_is_read(client: TestClient) -> None:
    answer = client.post("/release_task", files={"src_audio": ("song.wav", b"x" * 2_000_000)})
    assert (answer.status_code, set(answer.json())) == (413, {"detail"})


# As the clients of each send them: a form's object, a wish alone, an instrumental one.
@pytest.mark.parametrize(
    ("path", "sent", "expected"),
    [
        (
            "/format_input",
            {"prompt": "pop rock", "lyrics": "Walking", "param_obj": '{"duration": 180, "language": "zh", "bpm": 90}'},
            {"caption": "pop rock", "lyrics": "Walking", "duration": 180, "vocal_language": "zh", "bpm": 90},
        ),
        ("/format_input", {"caption": "pop"}, {"caption": "pop", "lyrics": "[Instrumental]"}),
        (
            "/v1/create_sample",
            {"query": "a walk home", "instrumental": False, "vocal_language": "ja", "temperature": 0.85},
            {"caption": "a walk home", "lyrics": "[Instrumental]", "vocal_language": "ja", "keyscale": ""},
        ),
        ("/v1/create_sample", {"description": "rain", "instrumental": True}, {"caption": "rain", "instrumental": True}),
        ("/v1/create_sample", {}, {"caption": SIMPLE[0].caption}),
    ],
)
def test_what_nobody_writes_comes_back_and_is_marked(
    client: TestClient, path: str, sent: dict[str, Any], expected: dict[str, Any]
) -> None:
    answered = data(client.post(path, json=sent))
    assert answered.items() >= (expected | {"degraded": True}).items()
    assert answered["warnings"][0].startswith("nothing was written: no worker with a planner is up")
    # What clients do next: they release it.
    assert data(client.post("/release_task", json={"prompt": answered["caption"], "lyrics": answered["lyrics"]}))
    refusal(client.post(path, content=b"{"), 400)


@pytest.mark.parametrize(
    "sent", [{"json": {"sample_type": "simple_mode"}}, {"data": {"sample_type": "custom_mode"}}, {}]
)
def test_a_random_sample_as_documented(client: TestClient, sent: dict[str, Any]) -> None:
    answered = data(client.post("/create_random_sample", **sent))
    documented = {"caption", "lyrics", "bpm", "key_scale", "time_signature", "duration", "vocal_language"}
    assert documented <= answered.keys()


def test_models_before_and_with_a_worker(client: TestClient, settings: GatewaySettings, slot: HandSlot) -> None:
    none: dict[str, Any] = {
        "models": [],
        "default_model": None,
        "lm_models": [],
        "loaded_lm_model": None,
        "llm_initialized": False,
    }
    assert data(client.get("/v1/model_inventory")) == none
    assert client.get("/v1/models").json() == {"object": "list", "data": [], "models": []}
    unknown = data(client.post("/release_task", json={"model": "acestep-v15-turbo"}))
    assert "no worker is up" in unknown["warnings"][0]
    init = client.post("/v1/init", json={"model": "acestep-v15-turbo"}).json()
    assert (init["code"], init["data"]) == (500, None)
    assert "none has acestep-v15-turbo; held: nothing yet" in init["error"]

    announce(slot.jobs.redis, settings.keys, worker("w", "acestep-v15-turbo", started_at=now()))
    both = client.get("/v1/models")
    assert [model["name"] for model in both.json()["models"]] == ["acestep-v15-turbo"]  # ours, beside theirs
    (listed,) = both.json()["data"]  # as OpenAI's clients and Wrangler read it
    assert (listed["id"], listed["object"], listed["pricing"]["prompt"]) == ("acestep-v15-turbo", "model", "0")
    assert "audio" in listed["output_modalities"]
    held = data(client.get("/v1/model_inventory"))
    assert held["default_model"] == "acestep-v15-turbo"
    assert held["models"][0].items() >= {"name": "acestep-v15-turbo", "is_default": True}.items()
    assert data(client.post("/release_task", json={"model": "acestep-v15-turbo"}))["warnings"] == []
    assert data(client.post("/v1/init", json={"model": "acestep-v15-turbo"}))["loaded_model"] == "acestep-v15-turbo"
    assert data(client.post("/v1/init"))["slot"] == 1
    refusal(client.post("/v1/init", json={"slot": 9}), 400)
    assert "acestep-v15-turbo" in data(client.post("/v1/reinitialize"))["message"]


def test_health_satisfies_both_dialects(client: TestClient) -> None:
    answer = client.get("/health")
    assert data(answer).items() >= {"status": "ok", "service": "ACE-Step API"}.items()
    assert {"version", "models_initialized", "llm_initialized", "loaded_model"} <= data(answer).keys()
    assert {"status": "healthy"}.items() <= answer.json().items()
    assert {"pipeline_loaded", "workers"} <= answer.json().keys()


def test_stats_count_what_there_is(client: TestClient) -> None:
    before = data(client.get("/v1/stats"))
    released(client)
    after = data(client.get("/v1/stats"))
    assert after["queue_size"] == after["jobs"]["queued"] == before["queue_size"] + 1
    assert set(after) == {"jobs", "queue_size", "queue_maxsize", "avg_job_seconds"}
    assert after["queue_maxsize"] == 5_000  # what a client compares `queue_size` with before it sends more


def test_a_lora_belongs_to_a_task(client: TestClient) -> None:
    status = data(client.get("/v1/lora/status"))
    assert (status["lora_loaded"], status["use_lora"], status["adapters"]) == (False, False, [])
    assert "lora" in refusal(client.post("/v1/lora/load", json={"lora_path": "/loras/choir"}), 400)
    assert data(client.post("/v1/lora/unload"))["message"]
    assert data(client.post("/v1/lora/toggle", json={"use_lora": False}))["use_lora"] is False
    for path, body in (("toggle", {"use_lora": True}), ("scale", {"scale": 0.5})):
        answered = client.post(f"/v1/lora/{path}", json=body)
        assert (answered.status_code, answered.json()["code"], answered.json()["data"]) == (200, 400, None)
        assert "POST /release_task" in answered.json()["error"]
    refusal(client.post("/v1/lora/toggle", json={}), 400)


def test_what_is_not_theirs_keeps_its_problems(client: TestClient) -> None:
    assert client.post("/v1/jobs", json={"bpm": 1}).headers["content-type"] == "application/problem+json"
    assert client.get("/release_task").json() == {"detail": "Method Not Allowed"}
    assert client.post("/v1/training/start", json={}).status_code == 404


def test_its_paths_speak_no_problems_and_our_own_do(settings: GatewaySettings) -> None:
    app = create_app(settings)
    paths = app.openapi()["paths"]
    tags = {dialect.tag for dialect in DIALECTS}
    theirs = {path: any(tags.intersection(call["tags"]) for call in calls.values()) for path, calls in paths.items()}
    under_v1 = {path for path in theirs if path.startswith("/v1/")}
    assert {path for path in under_v1 if theirs[path]} == {path for path in under_v1 if not speaks_problems(path, app)}
    assert len([path for path in under_v1 if theirs[path]]) > 5


def test_without_redis_everything_says_so(tmp_path: Path) -> None:
    [port] = servers.free_ports(1)
    settings = GatewaySettings(
        redis_url=f"redis://127.0.0.1:{port}/0", store_url=f"file://{tmp_path}", redis_timeout_s=0.1
    )
    with TestClient(create_app(settings), "http://localhost") as client:
        health = client.get("/health")
        assert (health.status_code, health.json()["code"]) == (503, 503)
        assert (health.json()["status"], health.json()["data"]["status"]) == ("unhealthy", "unhealthy")
        for method, path in (
            ("POST", "/release_task"),
            ("POST", "/query_result"),
            ("GET", "/v1/stats"),
            ("GET", "/v1/model_inventory"),
            ("POST", "/v1/init"),
            ("GET", f"/v1/audio?path={NO_JOB}-0.mp3"),
        ):
            body = {"task_id_list": ["x"]} if method == "POST" else None
            answer = client.request(method, path, json=body)
            assert "try again" in refusal(answer, 503), path
            assert answer.headers["Retry-After"] == "2"
