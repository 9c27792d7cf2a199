"""`serinette keys`: what an operator does with keys and limits, on a real Valkey."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis

from serinette import credentials
from serinette.credentials import Credential, Limits
from serinette.job import now
from serinette.names import Keys, Lane, Right
from tests.unit.test_cli import Shell


@pytest.fixture
def serinette(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], redis_url: str, tmp_path: Path
) -> Shell:
    monkeypatch.setenv("SERINETTE_REDIS_URL", redis_url)
    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capsys)


def kept(redis: Redis) -> list[Credential]:
    return credentials.list_credentials(redis, Keys())


def test_create_list_revoke(serinette: Shell, redis: Redis) -> None:
    said = serinette("keys", "create", "acme", "--note", "ci [1]", "--expires", "90d")
    assert said.status == 0
    key = said.output.strip()
    [credential] = kept(redis)
    assert credential.admits(key, now())
    assert not credential.admits(key, now() + timedelta(days=91))
    assert key not in said.errors
    listed = serinette("keys", "list")
    assert credential.id in listed.output
    assert "ci [1]" in listed.output
    assert key not in listed.output
    [shown] = json.loads(serinette("keys", "list", "--json").output)
    assert (shown["tenant"], "sha256" in shown) == ("acme", False)
    assert serinette("keys", "revoke", credential.id).status == 0
    assert kept(redis) == []
    unknown = serinette("keys", "revoke", credential.id)
    assert unknown.status == 1
    assert f"there is no key {credential.id}" in unknown.errors


def test_a_right_is_kept_by_rotation(serinette: Shell, redis: Redis) -> None:
    key = serinette("keys", "create", "ops", "--right", "operator:read").output.strip()
    assert "operator:read" in serinette("keys", "list").output
    serinette("keys", "rotate", str(credentials.id_of(key)))
    assert [credential.rights for credential in kept(redis)] == [(Right.OPERATOR_READ,)] * 2
    assert serinette("keys", "create", "ops", "--right", "operator:write").status == 2


def test_rotate_with_overlap(serinette: Shell, redis: Redis) -> None:
    old = serinette("keys", "create", "acme", "--note", "ci").output.strip()
    old_id = credentials.id_of(old)
    assert old_id
    new = serinette("keys", "rotate", old_id, "--overlap", "2h").output.strip()
    found = {credential.id: credential for credential in kept(redis)}
    fresh = found[str(credentials.id_of(new))]
    assert found[old_id].admits(old, now() + timedelta(hours=1))
    assert not found[old_id].admits(old, now() + timedelta(hours=3))
    assert fresh.admits(new, now() + timedelta(days=1000))
    assert (fresh.tenant, fresh.note) == ("acme", "ci")
    serinette("keys", "rotate", old_id, "--overlap", "9d")  # an end that was set is not put off
    assert not credentials.find(redis, Keys(), old_id).admits(old, now() + timedelta(hours=3))
    before = kept(redis)
    assert serinette("keys", "rotate", old_id, "--overlap", "soon").status
    assert kept(redis) == before, "no key is made that is not shown"


def test_declare_keeps_nothing(serinette: Shell, redis: Redis) -> None:
    said = serinette("keys", "create", "acme", "--declare")
    key = said.output.strip()
    declared = said.errors[said.errors.index("{") : said.errors.rindex("}") + 1]
    assert Credential.model_validate_json(declared).admits(key, now())
    assert redis.dbsize() == 0


def test_limits(serinette: Shell, redis: Redis) -> None:
    arguments = ["--lane", "normal", "--lane", "low", "--in-flight", "9", "--queued", "8", "--per-minute", "70"]
    assert serinette("keys", "limit", "acme", *arguments, "--gpu-seconds", "60").status == 0
    expected = Limits(
        lanes=(Lane.NORMAL, Lane.LOW),
        jobs_in_flight=9,
        queued_jobs=8,
        requests_per_minute=70,
        gpu_seconds_per_day=60,
    )
    assert credentials.limits(redis, Keys()) == {"acme": expected}
    assert json.loads(serinette("keys", "limits", "--json").output)["acme"]["lanes"] == ["normal", "low"]
    serinette("keys", "limit", "acme")
    assert credentials.limits(redis, Keys()) == {"acme": Limits()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "Acme"),
        ("create", "a/b"),
        ("create", "a:b"),
        ("create", "../x"),
        ("create", ""),
        ("create", "a" * 64),
        ("create", "acme", "--expires", "soon"),
        ("limit", "acme", "--lane", "middle"),
        ("limit", "acme", "--queued", "-1"),
    ],
)
def test_wrong_usage(serinette: Shell, redis: Redis, arguments: tuple[str, ...]) -> None:
    assert serinette("keys", *arguments).status == 2
    assert redis.dbsize() == 0


def test_without_a_server(serinette: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINETTE_REDIS_URL", "redis://127.0.0.1:1/0")
    said = serinette("keys", "list")
    assert said.status == 3
    assert "--redis-url" in said.errors


def test_up_does_not_let_anyone_in(serinette: Shell, tmp_path: Path) -> None:
    said = serinette("up", "--host", "0.0.0.0", "--data-dir", str(tmp_path / "data"))
    assert said.status == 1
    assert "--auth" in said.errors
    assert not (tmp_path / "data").exists()


def test_scripts_get_json(serinette: Shell, redis: Redis) -> None:
    made = json.loads(serinette("keys", "create", "acme", "--json").output)
    assert credentials.id_of(made["key"]) == made["id"]
    assert (made["tenant"], "sha256" in made) == ("acme", False)
    rotated = json.loads(serinette("keys", "rotate", made["id"], "--json").output)
    assert json.loads(serinette("keys", "revoke", rotated["id"], "--json").output) == {
        "id": rotated["id"],
        "revoked": True,
    }
    assert json.loads(serinette("keys", "limit", "acme", "--queued", "3", "--json").output)["acme"]["queued_jobs"] == 3
    assert [credential.id for credential in kept(redis)] == [made["id"]]
