"""What the doctor says of a real store, and of a laptop without one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from serinette.cli.app import app
from serinette.doctor.findings import Finding, Level, answered, ok
from serinette.doctor.store import check_store
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.servers import BUCKET, S3, free_ports


@pytest.fixture
def s3_settings(s3: S3, monkeypatch: pytest.MonkeyPatch) -> SharedSettings:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return SharedSettings(store_url=f"s3://{BUCKET}/doctors", store_endpoint=s3.endpoint)


def test_a_store_that_works_is_left_as_it_was(s3_settings: SharedSettings) -> None:
    found = check_store(s3_settings)
    assert {each.level for each in found} == {Level.OK}, found
    assert [each.check for each in found] == ["writable", "create once"]
    assert not list(Store.open(s3_settings).list("doctor"))


def test_a_wrong_secret(s3_settings: SharedSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-this-one")
    (found,) = check_store(s3_settings)
    assert (found.level, "refuses our credentials" in found.message) == (Level.BAD, True)
    assert "AWS_SECRET_ACCESS_KEY" in found.remedy
    assert "not-this-one" not in str(found)


def test_no_such_bucket(s3_settings: SharedSettings) -> None:
    (found,) = check_store(s3_settings.model_copy(update={"store_url": "s3://no-such-bucket/x"}))
    assert found.level is Level.BAD
    assert found.remedy.startswith("make the bucket")


def test_no_store_there(s3_settings: SharedSettings) -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    (found,) = check_store(s3_settings.model_copy(update={"store_endpoint": nowhere}))
    assert found.level is Level.BAD
    assert found.remedy.startswith("correct SERINETTE_STORE_ENDPOINT")


def test_a_full_disk_is_no_matter_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    (found,) = check_store(SharedSettings(store_url=tmp_path.as_uri()))
    assert (found.level, f"the disk of {tmp_path} is full" in found.message) == (Level.BAD, True)
    assert "free space there" in found.remedy


def test_what_a_store_may_do_wrong(s3_settings: SharedSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "put_if_absent", lambda *_: True)
    monkeypatch.setattr(Store, "get", lambda *_: b"another's")
    found = check_store(s3_settings)
    assert [each.level for each in found] == [Level.BAD, Level.BAD]


def test_a_laptop(redis_url: str, file_store_url: str) -> None:
    command = ["doctor", "--no-cluster", "--redis-url", redis_url, "--store-url", file_store_url]
    done = CliRunner().invoke(app, [*command, "--json"])
    report = json.loads(done.stdout)
    assert (done.exit_code, report["healthy"]) == (0, True)
    assert {each["part"] for each in report["findings"]} == {"queue", "store"}
    strict = CliRunner().invoke(app, [*command, "--strict"])
    assert strict.exit_code == 1, "no append-only file"
    assert "→ CONFIG SET appendonly yes" in strict.stdout
    gone = CliRunner().invoke(app, ["doctor", "--no-cluster", "--redis-url", "redis://127.0.0.1:1"])
    assert (gone.exit_code, "nothing listens there" in gone.stdout) == (1, True)


def test_what_cannot_be_asked_keeps_the_others_from_nothing(
    file_store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    command = ["doctor", "--redis-url", "redis://127.0.0.1:1", "--store-url", file_store_url, "--cluster", "--json"]
    report = json.loads(CliRunner().invoke(app, command).stdout)
    levels = {(each["part"], each["check"]): each["level"] for each in report["findings"]}
    assert levels["queue", "reachable"] == levels["cluster", "reachable"] == "bad"
    assert levels["store", "create once"] == "ok"
    nothing = CliRunner().invoke(app, ["doctor", "--no-cluster"], env={"SERINETTE_REDIS_URL": ""})
    assert (nothing.exit_code, "nothing to check" in nothing.output) == (2, True)


def test_a_question_that_hangs_is_given_up_and_keeps_what_it_found() -> None:
    hangs = threading.Event()

    def question() -> Iterator[Finding]:
        yield ok("store", "first", "well")
        hangs.wait()

    found = answered("store", "second", "look there", question, timeout_s=0.05)
    hangs.set()
    assert [(each.check, each.level) for each in found] == [("first", Level.OK), ("second", Level.UNKNOWN)]
    assert "no answer within 0.05 s" in found[1].message
