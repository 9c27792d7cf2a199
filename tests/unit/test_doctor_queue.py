"""What the doctor says of a real Valkey: each thing that is wrong in words, with what to do."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis

from serinette.doctor import queue
from serinette.doctor.findings import Finding, Level, healthy
from serinette.doctor.queue import check_queue, judge_info
from serinette.names import Keys
from serinette.settings import SharedSettings, connect_redis
from tests import servers
from tests.tls import certificate, relay


def settings(url: str, **others: Any) -> SharedSettings:
    return SharedSettings(redis_url=SecretStr(url), **others)


def only_bad(given: SharedSettings) -> Finding:
    (found,) = check_queue(given)
    assert found.level is Level.BAD
    assert found.remedy
    return found


def by_check(given: SharedSettings) -> dict[str, Finding]:
    return {found.check: found for found in check_queue(given)}


def test_all_is_well(tmp_path: Path) -> None:
    with servers.valkey(tmp_path, append_only=True) as server:
        found = check_queue(settings(server.connection_url))
    assert {each.level for each in found} == {Level.OK}, found
    assert {
        "reachable",
        "version",
        "role",
        "eviction",
        "append-only file",
        "synced",
        "writable",
        "place",
        "clock",
    } == {each.check for each in found}


def test_a_file_that_is_synced_late_needs_submits_that_wait(tmp_path: Path) -> None:
    with servers.valkey(tmp_path, append_only=True) as server:
        given = settings(server.connection_url)
        with connect_redis(given) as redis:
            redis.config_set("appendfsync", "everysec")
            late = by_check(given)["synced"]
            assert (late.level, "everysec, gateway.durability process" in late.message) == (Level.WARNING, True)
            (waited,) = (each for each in check_queue(given, "fsync") if each.check == "synced")
            assert waited.level is Level.OK
            redis.execute_command("ACL", "SETUSER", "default", "-config")
            hidden = by_check(given)["synced"]
            assert (hidden.level, "CONFIG GET" in hidden.message) == (Level.UNKNOWN, True)


def test_passwords(redis: Redis, redis_url: str) -> None:
    redis.config_set("requirepass", "right one")
    assert "asks for a password and was given none" in only_bad(settings(redis_url)).message
    wrong = only_bad(settings(redis_url, redis_password=SecretStr("wrong-secret")))
    assert "refuses this user or password" in wrong.message
    assert "wrong-secret" not in str(wrong)
    assert (
        "refuses this user" in only_bad(settings(redis_url, redis_username="x", redis_password=SecretStr("y"))).message
    )
    assert healthy(check_queue(settings(redis_url, redis_password=SecretStr("right one"))))


def test_a_password_in_the_url_is_never_printed(redis: Redis, redis_url: str) -> None:
    redis.config_set("requirepass", "right")
    found = check_queue(settings(redis_url.replace("://", "://:right@")))
    assert "right" not in str(found)


def test_databases(redis: Redis, redis_url: str) -> None:
    base = redis_url.rstrip("/")
    assert "has no such database" in only_bad(settings(f"{base}/99")).message
    new = by_check(settings(f"{base}/3"))["place"]
    assert new.message == "no Serinette has worked here yet (database 3, prefix 'rq')"
    redis.hset(Keys().counters, "x", 1)
    assert by_check(settings(f"{base}/0"))["place"].message == "a Serinette works here (database 0, prefix 'rq')"


def test_tls(redis: Redis, redis_url: str, tmp_path: Path) -> None:
    crt, key = certificate(tmp_path)
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with relay(port, crt, key) as tls:
        needs = only_bad(settings(f"redis://127.0.0.1:{tls}/0", redis_timeout_s=1))
        assert "the server speaks TLS and we do not" in needs.message
        assert "rediss://" in needs.remedy
        assert "certificate cannot be trusted" in only_bad(settings(f"rediss://127.0.0.1:{tls}/0")).message
        trusted = check_queue(settings(f"rediss://127.0.0.1:{tls}/0?ssl_ca_certs={crt}"))
        assert healthy(trusted), trusted
    assert (
        "we speak TLS and the server does not"
        in only_bad(settings(redis_url.replace("redis:", "rediss:"), redis_timeout_s=1)).message
    )


def test_no_server_there(tmp_path: Path) -> None:
    port = servers.free_ports(1)[0]
    assert "nothing listens there" in only_bad(settings(f"redis://127.0.0.1:{port}")).message
    assert "nothing listens there" in only_bad(settings(f"unix://{tmp_path}/no.sock")).message
    assert "name is not known here" in only_bad(settings("redis://no-such-host.invalid")).message
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}"
        assert "does not answer in time" in only_bad(settings(url, redis_timeout_s=0.3)).message


def test_what_loses_jobs(redis: Redis, redis_url: str) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    found = by_check(settings(redis_url))
    assert (found["eviction"].level, found["append-only file"].level) == (Level.WARNING, Level.WARNING)
    redis.config_set("maxmemory", "1gb")
    eviction = by_check(settings(redis_url))["eviction"]
    assert (eviction.level, eviction.message) == (Level.BAD, "maxmemory-policy is allkeys-lru")
    assert "noeviction" in eviction.remedy


def test_rights(redis: Redis, redis_url: str) -> None:
    lacking = {
        "reader": ("+@read", "+info", "+time"),
        "noscript": ("+@all", "-@scripting"),
        "noload": ("+@all", "-script"),
    }
    for name, given in lacking.items():
        rules = ["+ping", "+client", "+select", *given]
        redis.acl_setuser(name, enabled=True, passwords="+secret", keys=["*"], channels=["*"], commands=rules)
    writable = {
        name: by_check(settings(redis_url, redis_username=name, redis_password=SecretStr("secret")))["writable"]
        for name in lacking
    }
    assert "a write is refused" in writable["reader"].message
    assert "scripts are refused" in writable["noscript"].message and "scripts are refused" in writable["noload"].message
    assert {each.level for each in writable.values()} == {Level.BAD}


def test_what_this_user_may_not_ask_keeps_no_other_question_from_being_asked(redis: Redis, redis_url: str) -> None:
    rules = ["+@all", "-info", "-time"]
    redis.acl_setuser("blind", enabled=True, passwords="+secret", keys=["*"], channels=["*"], commands=rules)
    found = by_check(settings(redis_url, redis_username="blind", redis_password=SecretStr("secret")))
    assert {check for check, each in found.items() if each.level is Level.UNKNOWN} == {"server", "clock"}
    assert {found["reachable"].level, found["writable"].level, found["place"].level} == {Level.OK}
    assert "+info" in found["server"].remedy


def test_a_replica_takes_no_writes(redis: Redis, redis_url: str) -> None:
    redis.replicaof("127.0.0.1", "1")
    found = by_check(settings(redis_url))
    assert "name the primary, 127.0.0.1:1" in found["role"].remedy
    assert "a write is refused" in found["writable"].message


@pytest.mark.parametrize(
    ("info", "check", "level"),
    [
        ({"redis_version": "7.0.15"}, "version", Level.BAD),
        ({"redis_version": "7.2.0"}, "version", Level.OK),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, "version", Level.OK),
        ({"cluster_enabled": 1}, "role", Level.BAD),
        ({"role": "master"}, "role", Level.OK),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, "append-only file", Level.BAD),
    ],
)
def test_what_info_shows(info: dict[str, Any], check: str, level: Level) -> None:
    found = {each.check: each for each in judge_info(info)}
    assert found[check].level is level


@pytest.mark.parametrize(("ahead_s", "level"), [(0.3, Level.OK), (-1.5, Level.OK), (-4, Level.WARNING)])
def test_clocks(redis_url: str, monkeypatch: pytest.MonkeyPatch, ahead_s: float, level: Level) -> None:
    monkeypatch.setattr(queue, "time", SimpleNamespace(time=lambda: time.time() - ahead_s))
    assert by_check(settings(redis_url))["clock"].level is level
