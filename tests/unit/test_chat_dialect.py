"""Chat completions over HTTP, as the official server's own clients and OpenAI's send them, on a real Valkey."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any
from unittest.mock import patch

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from api.app import create_app
from api.dialects.chat import answers
from api.dialects.chat.request import words_of
from api.dialects.dialect import MAX_BASE64_BODY_BYTES
from api.settings import GatewaySettings
from serinette.job import JobError, JobStatus, now
from serinette.presence import announce
from serinette.spec import GenerationSpec, Planned
from serinette.store import Store
from tests.gateways import HandSlot
from tests.jobs import Board
from tests.unit import dialect_jobs
from tests.unit.dialect_jobs import silence, worker

SONG = b"ID3" + bytes(range(256)) * 5_000  # more than one chunk of the store's


@pytest.fixture(scope="module")
def settings(valkey_url: str, store_url: str) -> GatewaySettings:
    return GatewaySettings(redis_url=valkey_url, store_url=store_url, max_wait_s=5)


@pytest.fixture(scope="module")
def client(settings: GatewaySettings) -> Iterator[TestClient]:
    """A gateway whose jobs end as soon as they are submitted: with a song, or in failure if their prompt says so."""
    stop = Event()

    def generate() -> None:
        with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
            board, slot = Board(redis, settings.keys), HandSlot(redis, Store.open(settings), settings.keys)
            while not stop.wait(0.02):
                announce(redis, settings.keys, worker("w", "acestep-v15-turbo", started_at=now()))
                for job_id in board.waiting():
                    spec = board.entry(job_id).spec
                    prompt = spec.prompt
                    if prompt == "wait" or not slot.claim(job_id):
                        continue
                    if prompt == "fail":
                        slot.fail(job_id, JobError(code="out_of_memory", message="duration_s: too long to fit"))
                    else:
                        slot.succeed(job_id, [SONG, b"second"][: spec.variations])

    thread = Thread(target=generate)
    thread.start()
    with TestClient(create_app(settings), "http://localhost") as client:
        yield client
    stop.set()
    thread.join()


def asking(content: Any, **further: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **further}


def spec_of(client: TestClient, answer: Any) -> dict[str, Any]:
    job_id = answer.json()["id"].removeprefix("chatcmpl-")
    found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()["spec"]
    return found


def audio_of(item: dict[str, Any]) -> bytes:
    kind, data = item["audio_url"]["url"].split(",", 1)
    assert (item["type"], kind) == ("audio_url", "data:audio/mpeg;base64")
    return base64.b64decode(data)


# The modes of its documentation, one by one.
@pytest.mark.parametrize(
    ("body", "expected", "noted"),
    [
        (
            asking("<prompt>A ballad in C major</prompt>\n<lyrics>[Verse 1]\nSunlight</lyrics>")
            | {"audio_config": {"duration": 30, "vocal_language": "en", "key_scale": "B-flat major"}},
            {
                "prompt": "A ballad in C major",
                "lyrics": "[Verse 1]\nSunlight",
                "duration_s": 30,
                "key_scale": "Bb major",
            },
            [],
        ),
        (
            asking("Generate an upbeat pop song about summer", sample_mode=True),
            {"prompt": "Generate an upbeat pop song about summer", "rewrite": "write", "thinking": True},
            [],
        ),
        (
            asking("[Verse 1]\nWalking\n\n[Chorus]\nDance"),
            {"prompt": "", "lyrics": "[Verse 1]\nWalking\n\n[Chorus]\nDance"},
            [],
        ),
        (
            asking("Energetic EDM", lyrics="[Drop]", audio_config={"bpm": 128, "duration": 60}),
            {"prompt": "Energetic EDM", "lyrics": "[Drop]", "bpm": 128},
            [],
        ),
        (
            asking("<prompt>Epic score</prompt>", audio_config={"instrumental": True, "duration": 30}),
            {"prompt": "Epic score", "lyrics": "[Instrumental]"},
            [],
        ),
        (
            {
                "model": "acemusic/acestep-v1.5-turbo",
                "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "a dance track"}],
                "modalities": ["audio"],
                "temperature": 0.85,
                "top_p": 0.9,
                "instrumental": True,
            },
            {
                "prompt": "a dance track",
                "lyrics": "[Instrumental]",
                "model": None,
                "lm_temperature": 0.85,
                "lm_top_p": 0.9,
            },
            ["messages: only the last one of the user is read", "model: acestep-v1.5-turbo is not held here"],
        ),
        (
            asking("<prompt>x</prompt>", model="acestep/acestep-v15-turbo", seed="42,123", batch_size=2, n=1),
            {"model": "acestep-v15-turbo", "seed": [42, 123], "variations": 2},
            ["without effect here: n"],
        ),
        (asking("<prompt>x</prompt>", seed=7, guidance_scale=7.0), {"seed": 7, "guidance_scale": 7.0}, []),
        # A history, with what other servers answered in it.
        (
            {
                "messages": [
                    *[{"role": "user", "content": "jazz"}] * 70,
                    {"role": "assistant", "content": [{"type": "output_text", "text": None}], "audio": {"id": "x"}},
                    "nonsense",
                    {"role": "user", "content": "<prompt>more</prompt>"},
                    {"role": "tool", "content": None},
                ]
            },
            {"prompt": "more"},
            ["messages: only the last one of the user is read"],
        ),
        (
            asking([{"type": "audio_url", "audio_url": {"url": "data:,x"}}, {"type": "text", "text": "a walk"}]),
            {"prompt": "a walk"},
            ["messages: parts that are not read: audio_url"],
        ),
        (
            asking("Please <prompt>jazz</prompt> with <lyrics>la</lyrics> horns"),
            {"prompt": "jazz", "lyrics": "la"},
            ["messages: text outside of the tags has no effect"],
        ),
        (
            asking("<prompt>x</prompt>", seed="auto", guidance_scale="", model="none")
            | {
                "audio_config": {"bpm": "", "duration": "auto", "key_scale": " ", "time_signature": "N/A", "format": ""}
            },
            {"bpm": None, "duration_s": 60, "key_scale": None, "time_signature": None, "format": "mp3", "model": None},
            [],
        ),
        (
            asking("<prompt>x</prompt>", audio_config={"format": "AAC"}),
            {"format": "m4a"},
            ["format: aac comes in an MP4 container"],
        ),
    ],
)
def test_a_message_becomes_a_song(client: TestClient, body: dict[str, Any], expected: Any, noted: list[str]) -> None:
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    spec = spec_of(client, answer)
    assert {name: spec[name] for name in expected} == expected
    answered = answer.json()
    assert [len(noted), *noted] == [
        len(answered["warnings"]),
        *(warning[: len(start)] for warning, start in zip(answered["warnings"], noted, strict=True)),
    ]
    assert answered.keys() >= {"id", "object", "created", "model", "choices", "usage"}
    (choice,) = answered["choices"]
    assert (answered["object"], choice["finish_reason"], choice["message"]["role"]) == (
        "chat.completion",
        "stop",
        "assistant",
    )
    songs = [audio_of(item) for item in choice["message"]["audio"]]
    assert songs == [SONG, b"second"][: spec["variations"]]
    assert all(warning in choice["message"]["content"] for warning in answered["warnings"])


def test_a_stream_shows_that_it_lives_and_ends_with_the_song(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.dialects.chat.routes.HEARTBEAT_S", 0.01)
    body = asking("<prompt>serinette:song ;base64,serinette:song</prompt>", stream=True, batch_size=2)
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "Generating music"}
    assert [audio_of(item) for delta in deltas for item in delta.get("audio", [])] == [SONG, b"second"]
    assert "## Metadata" in "".join(delta.get("content", "") for delta in deltas)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]


def test_streams_are_bounded_and_nothing_is_submitted_beyond(client: TestClient, settings: GatewaySettings) -> None:
    app = create_app(settings)
    with TestClient(app, "http://localhost") as other:
        streams = app.state.parts.events.streams
        before = len(other.get("/v1/jobs?limit=100").json()["jobs"])
        with patch.object(streams, "_each", 0):
            refused = other.post("/v1/chat/completions", json=asking("<prompt>x</prompt>", stream=True))
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "server_error")
        assert len(other.get("/v1/jobs?limit=100").json()["jobs"]) == before
        other.post("/v1/chat/completions", json=asking("<prompt>x</prompt>", stream=True))
        other.post("/v1/chat/completions", json=asking("<prompt>x</prompt>", stream=True, batch_size=9))
        assert streams.held("default") == 0


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        (asking([{"type": "text", "text": 7}]), 400, "messages.0.content.0.text: Input should be a valid string"),
        (asking(7), 400, "messages.0.content: Input should be a valid list"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "must say what to generate"),
        (asking("  "), 400, "must say what to generate"),
        (asking("<prompt>x</prompt>", audio_config={"duration": 9_999}), 400, "duration: "),
        (asking("<prompt>x</prompt>", audio_config={"format": "aiff"}), 400, "format: must be one of"),
        (asking("<prompt>x</prompt>", audio_config=[]), 400, "audio_config"),
        (asking("<prompt>x</prompt>", task_type="cover"), 400, "messages: task cover needs it"),
        (asking("<prompt>x</prompt>", task_type="write"), 400, "task_type: "),  # no place for text without a song
        (asking("<prompt>x</prompt>", batch_size=9), 400, "batch_size: "),
        (asking("<prompt>fail</prompt>"), 500, "duration: too long to fit"),
        (
            asking([{"type": "input_audio", "input_audio": {"data": "no base64!"}}], task_type="cover"),
            400,
            "messages: it is no base64",
        ),
    ],
)
def test_what_is_refused_or_fails_says_so_in_openais_shape(
    client: TestClient, body: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert answer.json()["detail"] == answer.json()["error"]["message"]


def test_a_stream_that_fails_says_why(client: TestClient) -> None:
    lines = client.post("/v1/chat/completions", json=asking("<prompt>fail</prompt>", stream=True)).text.splitlines()
    assert json.loads(lines[-4].removeprefix("data: "))["error"]["code"] == "out_of_memory"
    assert lines[-2] == "data: [DONE]"


def test_audio_of_a_message_is_covered_and_its_second_gives_the_timbre(client: TestClient) -> None:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(silence()).decode(), "format": "wav"}}
    text = {"type": "text", "text": "<prompt>Jazz cover</prompt>"}
    cover = client.post("/v1/chat/completions", json=asking([text, part, part], task_type="cover"))
    spec = spec_of(client, cover)
    assert (spec["task"], spec["prompt"]) == ("cover", "Jazz cover")
    for name in ("source_audio", "reference_audio"):
        assert client.get(f"/v1/uploads/{spec[name]}").json()["duration_s"] == 1.0
    plain = client.post("/v1/chat/completions", json=asking([text, part, part]))
    assert (spec_of(client, plain)["source_audio"], len(plain.json()["warnings"])) == (None, 1)


def test_a_song_that_takes_long_is_found_behind_a_redirect(client: TestClient, settings: GatewaySettings) -> None:
    quick = create_app(settings.model_copy(update={"max_wait_s": 0.05}))
    with TestClient(quick, "http://localhost", follow_redirects=False) as impatient:
        answer = impatient.post("/v1/chat/completions", json=asking("<prompt>wait</prompt>"))
        assert answer.status_code == 303
        again = impatient.get(answer.headers["Location"])
        assert (again.status_code, again.headers["Location"]) == (303, answer.headers["Location"])
        job_id = answer.headers["Location"].rpartition("/")[2].partition("?")[0]
        impatient.post(f"/v1/jobs/{job_id}/cancel")
        canceled = impatient.get(answer.headers["Location"])
        assert (canceled.status_code, canceled.json()["error"]["code"]) == (500, "canceled")
        assert canceled.headers["x-should-retry"] == "false"  # as OpenAI's SDKs read it
    assert client.get("/v1/chat/completions/nothing").status_code == 404


def test_the_same_key_is_the_same_song(client: TestClient) -> None:
    first, again = (
        client.post("/v1/chat/completions", json=asking("<prompt>x</prompt>"), headers={"Idempotency-Key": "chat-1"})
        for _ in range(2)
    )
    assert first.json()["id"] == again.json()["id"]
    other = client.post("/v1/chat/completions", json=asking("y"), headers={"Idempotency-Key": "chat-1"})
    assert (other.status_code, other.json()["error"]["type"]) == (409, "invalid_request_error")


def test_the_same_key_with_the_same_audio_is_the_same_song(client: TestClient) -> None:
    def cover(sound: bytes) -> Any:
        part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode()}}
        body = asking([{"type": "text", "text": "x"}, part], task_type="cover")
        return client.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "chat-2"})

    first, again, other = cover(silence()), cover(silence()), cover(silence(2))
    assert (first.status_code, again.status_code, other.status_code) == (200, 200, 409)
    assert first.json()["id"] == again.json()["id"]


def test_songs_that_are_too_long_for_an_answer_are_named(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_INLINE_BYTES", 1_000)
    answered = client.post("/v1/chat/completions", json=asking("<prompt>x</prompt>")).json()
    url = answered["choices"][0]["message"]["audio"][0]["audio_url"]["url"]
    assert url.startswith("http://localhost/v1/jobs/")
    assert client.get(url).content == SONG


def test_the_models_are_listed_as_its_clients_read_them(client: TestClient) -> None:
    for path in ("/v1/models", "/api/v1/models"):
        (model,) = client.get(path).json()["data"]
        assert model.keys() >= {"id", "name", "created", "pricing", "input_modalities", "output_modalities"}
        assert "audio" in model["output_modalities"]
    for name in ("acestep-v15-turbo", "acestep/acestep-v15-turbo"):
        assert model.items() <= client.get(f"/v1/models/{name}").json().items()
    unknown = client.get("/v1/models/gpt-5")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert "'gpt-5'" in unknown.json()["detail"]


def test_a_body_beyond_its_bound_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", content=b"x" * (MAX_BASE64_BODY_BYTES + 100_000))
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("text", "lyrics", "wish", "found"),
    [
        ("<LYRICS>la</LYRICS>", "", False, ("", "la", False)),
        ("<prompt>a</prompt>", "la", False, ("a", "la", False)),
        ("one\ntwo\nthree\nfour", "", False, ("", "one\ntwo\nthree\nfour", False)),
        ("one\ntwo\nthree\nfour", "", True, ("one\ntwo\nthree\nfour", "", True)),
        ("a walk in the rain", "", False, ("a walk in the rain", "", True)),
        ("<prompt>" * 50_000, "", False, ("<prompt>" * 50_000, "", True)),
    ],
)
def test_what_a_text_says(text: str, lyrics: str, wish: bool, found: tuple[str, str, bool]) -> None:
    assert words_of(text, lyrics, wish=wish) == found


def test_what_the_planner_wrote_stands_in_the_content() -> None:
    song = dialect_jobs.artifact(0, 7, 30.0)
    plan = Planned(caption="slow harp", bpm=90, lyrics="la la")
    done = dialect_jobs.result(song.model_copy(update={"plan": plan}), model="m", warning="w")
    said = answers.content(dialect_jobs.job(JobStatus.SUCCEEDED, done, spec=GenerationSpec(prompt="a sad harp tune")))
    assert all(words in said for words in ("**Caption:** slow harp", "**BPM:** 90", "la la"))
