"""The steps around a container, as processes of their own against a real S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controller.containers.manifest import READY
from serinette.store import Store
from tests import servers
from tests.processes import eventually
from tests.unit.test_store import s3_settings


@pytest.fixture
def store(s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store.open(s3_settings(s3, monkeypatch, tmp_path.name, store_public_endpoint=s3.endpoint))


def step(name: str, plan: Any, root: Path) -> subprocess.Popen[str]:
    """A step as its container starts it, without credentials of the store."""
    given = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    environment = {**given, "SERINETTE_STEP": json.dumps(plan), "SERINETTE_STEP_ROOT": str(root)}
    command = [sys.executable, "-m", "controller.containers.steps", name]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_inputs_are_there(store: Store, tmp_path: Path) -> None:
    store.put("songs/default/j/a-0.mp3", b"a song")
    url = store.sign_get("songs/default/j/a-0.mp3", 60)
    with step("fetch", [{"path": "deep/song.mp3", "url": url}], tmp_path / "inputs") as process:
        assert process.wait(60) == 0, process.stderr and process.stderr.read()
    assert (tmp_path / "inputs/deep/song.mp3").read_bytes() == b"a song"


def test_an_input_that_is_gone_is_reported_by_its_exit_code_and_not_by_its_url(store: Store, tmp_path: Path) -> None:
    url = store.sign_get("songs/default/j/gone", 60)
    with step("fetch", [{"path": "a", "url": url}], tmp_path) as process:
        assert process.wait(60) == 3
        assert process.stderr and process.stderr.read() == "fetch: the store answered 404\n"


@pytest.mark.parametrize("path", ["../a", "/etc/a"])
def test_a_plan_that_leads_elsewhere_is_refused(path: str, tmp_path: Path) -> None:
    with step("fetch", [{"path": path, "url": "http://127.0.0.1:9/"}], tmp_path / "inputs") as process:
        assert process.wait(60) == 1
    assert not (tmp_path / "a").exists()


def test_it_is_ready_when_sigterm_would_reach_it(tmp_path: Path) -> None:
    def ready(pid: int) -> bool:
        command = [word.replace("/proc/1/", f"/proc/{pid}/") for word in READY]
        return subprocess.run(command, check=False, timeout=60).returncode == 0

    with subprocess.Popen(["sleep", "600"]) as other:
        assert not ready(other.pid), "SIGTERM would end it, or as a container's first process pass it by"
        other.kill()
    with step("upload", {}, tmp_path) as process:
        assert process.stderr and process.stderr.readline() == "waiting for the command to end\n"
        state = Path(f"/proc/{process.pid}/stat")
        assert eventually(lambda: state.read_text().rpartition(") ")[2].startswith("S"))
        assert ready(process.pid), "asleep in its wait, as on a node"
        process.kill()


def test_outputs_are_put_when_the_command_has_ended(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    (root / "adapter").mkdir(parents=True)
    keys = [f"songs/default/j/a-output-{number:03}" for number in range(3)]
    plan = {
        "urls": [store.sign_put(key, 60) for key in keys],
        "manifest_url": store.sign_put("songs/default/j/a-outputs.json", 60),
        "max_bytes": 1_000_000,
    }
    with step("upload", plan, root) as process:
        assert process.stderr and process.stderr.readline() == "waiting for the command to end\n"
        (root / "adapter/weights.bin").write_bytes(b"w" * 300_000)
        (root / "empty").write_bytes(b"")
        (root / "z-too-much").write_bytes(b"z" * 900_000)
        (root / "a b\nc").write_bytes(b"evil")
        (root / "link").symlink_to("/proc/self/environ")
        (root / "linked").symlink_to("/etc")
        os.mkfifo(root / "pipe")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, process.stderr.read()
    manifest = json.loads(store.get("songs/default/j/a-outputs.json"))
    assert [(each["name"], each["index"], each["size_bytes"]) for each in manifest["outputs"]] == [
        ("adapter/weights.bin", 0, 300_000),
        ("empty", 1, 0),
    ]
    assert store.get(keys[0]) == b"w" * 300_000
    left_out = "\n".join(manifest["left_out"])
    for words in (r"'a b\nc' may not be called so", "'link' is no plain", "'linked' is no", "'pipe' is no", "too much"):
        assert words in left_out


def test_three_steps_that_are_given_nothing_else_keep_what_a_failed_command_left(store: Store, tmp_path: Path) -> None:
    """As in the pod, without its walls (tests/chart/test_container_steps.py has those)."""
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    outputs.mkdir()
    store.put("songs/default/j/a-0.mp3", b"a song")
    plans = {
        "fetch": [{"path": "song.mp3", "url": store.sign_get("songs/default/j/a-0.mp3", 600)}],
        "upload": {
            "urls": [store.sign_put("songs/default/j/a-output-000", 600)],
            "manifest_url": store.sign_put("songs/default/j/a-outputs.json", 600),
            "max_bytes": 1_000,
        },
    }

    def start(name: str, root: Path) -> subprocess.Popen[str]:
        only = {"SERINETTE_STEP": json.dumps(plans[name]), "SERINETTE_STEP_ROOT": str(root)}
        return subprocess.Popen(
            [sys.executable, "-m", "controller.containers.steps", name], env=only, stderr=subprocess.PIPE, text=True
        )

    with start("fetch", inputs) as fetch:
        assert fetch.wait(120) == 0, fetch.stderr and fetch.stderr.read()
    with start("upload", outputs) as upload:
        assert upload.stderr and upload.stderr.readline() == "waiting for the command to end\n"
        command = ["/bin/sh", "-c", f"cat {inputs}/song.mp3 > {outputs}/copy; exit 7"]
        assert subprocess.run(command, env={}, check=False, timeout=120).returncode == 7
        upload.send_signal(signal.SIGTERM)
        assert upload.wait(120) == 0, upload.stderr.read()
    assert store.get("songs/default/j/a-output-000") == b"a song"
    assert [each["name"] for each in json.loads(store.get("songs/default/j/a-outputs.json"))["outputs"]] == ["copy"]
