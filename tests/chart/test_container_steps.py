"""The three steps of a container's pod as real containers, confined as its manifest says, against a real S3.

podman has no sidecars: each container of the manifest is one `podman run`, in the order in which Kubernetes starts and
ends them. The steps share this machine's network, where the store is; the command has none. A kubelet's podPidsLimit is
`--pids-limit` here.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from controller.containers.manifest import FETCH, MAIN, UPLOAD, Order, manifest
from serinette.container import ContainerSpec
from serinette.names import Lane, manifest_key, output_key, song_prefix
from serinette.settings import ContainerSettings
from serinette.store import Store
from tests import servers
from tests.chart.podman import BASE, Podman
from tests.processes import eventually
from tests.unit.test_store import s3_settings

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
ATTEMPT = "b7a1"
STEPS_IMAGE = "localhost/serinette-gateway:0.1.0"
PROCESSES = 64  # at most, in the command's container
SETTINGS = ContainerSettings(containers_namespace="jobs", containers_steps_image=STEPS_IMAGE)

# What a command sees of its surroundings, and leaves before it fails.
LOOK = """
id -u > /outputs/user
grep -E '^(CapEff|NoNewPrivs)' /proc/self/status > /outputs/status
env > /outputs/env
for place in / /etc /usr /inputs; do touch $place/mine 2> /dev/null && echo $place; done > /outputs/written
touch /tmp/mine && cat /inputs/deep/song.mp3 > /outputs/copy
ls /sys/class/net > /outputs/network
exit 7
"""
# Every process makes others for as long as it can; the first one looks on, and counts.
BOMB = """
import os, pathlib, time
until = time.monotonic() + 6
if os.fork():
    time.sleep(4)
    count = sum(name.isdigit() for name in os.listdir("/proc"))
    pathlib.Path("/outputs/processes").write_text(str(count))
    raise SystemExit
while time.monotonic() < until:
    try:
        os.fork()
    except OSError:
        pathlib.Path("/outputs/refused").touch()
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    podman = Podman(tmp_path_factory.mktemp("podman"))
    podman.require()
    podman.build("api/Dockerfile", STEPS_IMAGE)
    return podman


@dataclass
class Pod:
    """The pod of a manifest, by hand: its containers, and its volumes as directories."""

    podman: Podman
    directory: Path
    spec: dict[str, Any]
    names: list[str] = field(default_factory=list)

    def container(self, name: str) -> dict[str, Any]:
        found = {each["name"]: each for each in (*self.spec["initContainers"], *self.spec["containers"])}
        container: dict[str, Any] = found[name]
        return container

    def options(self, name: str, *more: str) -> list[str]:
        """Image, command and what confines it, in podman's words."""
        container, user = self.container(name), self.spec["securityContext"]
        confined = container["securityContext"]
        assert not confined["allowPrivilegeEscalation"]
        assert confined["readOnlyRootFilesystem"]
        self.names.append(f"serinette-{name}-{uuid4().hex}")
        options = ["--name", self.names[-1], "--pull=never", "--read-only", "--read-only-tmpfs=false", *more]
        options += ["--security-opt", "no-new-privileges", "--user", f"{user['runAsUser']}:{user['runAsGroup']}"]
        options += [f"--cap-drop={name}" for name in confined["capabilities"]["drop"]]
        options += [f"--env={each['name']}={each['value']}" for each in container["env"]]
        for mount in container["volumeMounts"]:
            options += [
                "--volume",
                f"{self.volume(mount['name'])}:{mount['mountPath']}:{'ro' if mount['readOnly'] else 'rw'}",
            ]
        command = [*container["command"], *container.get("args", ())]
        return [*options, "--entrypoint", json.dumps(command), container["image"]]

    def volume(self, name: str) -> Path:
        """An emptyDir, which its group (`fsGroup`) may write to."""
        directory = self.directory / name
        if not directory.exists():
            directory.mkdir()
            directory.chmod(0o2777)
        return directory

    def run(self) -> int:
        """Fetch, run the command beside the step that waits for its end, have that put the outputs: the exit code."""
        self.podman("run", *self.options(FETCH, "--network=host"))
        self.podman("run", "--detach", *self.options(UPLOAD, "--network=host"))
        upload = self.names[-1]
        ready = ["podman", "exec", upload, *self.container(UPLOAD)["startupProbe"]["exec"]["command"]]
        asked = partial(subprocess.run, ready, env=self.podman.environment, check=False, capture_output=True)
        assert eventually(lambda: asked().returncode == 0, 120), self.podman.log(upload)
        limits = ("--network=none", f"--pids-limit={PROCESSES}")
        command = ["podman", "run", *self.options(MAIN, *limits)]
        ran = subprocess.run(command, env=self.podman.environment, check=False, timeout=300)
        self.podman("kill", "--signal", "TERM", upload)
        assert self.podman("wait", upload, timeout_s=300) == "0", self.podman.log(upload)
        return ran.returncode


@pytest.fixture
def store(s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store.open(s3_settings(s3, monkeypatch, tmp_path.name, store_public_endpoint=s3.endpoint))


def pod_of(podman: Podman, directory: Path, store: Store, script: str, interpreter: str = "sh") -> Pod:
    """As the controller makes it, with a song and a script as inputs and room for eight outputs."""
    inputs = {"deep/song.mp3": b"a song", "script": script.encode()}
    fetch = []
    for number, (name, data) in enumerate(inputs.items()):
        key = f"{song_prefix('default', JOB)}{number}"
        store.put(key, data)
        fetch.append({"path": name, "url": store.sign_get(key, 900)})
    upload = {
        "urls": [store.sign_put(output_key("default", JOB, ATTEMPT, number), 900) for number in range(8)],
        "manifest_url": store.sign_put(manifest_key("default", JOB, ATTEMPT), 900),
        "max_bytes": 1_000_000,
    }
    spec = ContainerSpec(image=BASE, command=(interpreter, "/inputs/script"))
    order = Order(JOB, "default", ATTEMPT, Lane.NORMAL, spec, 600, tuple(fetch), upload)
    return Pod(podman, directory, manifest(order, SETTINGS)["spec"]["template"]["spec"])


@pytest.fixture
def made(podman: Podman, tmp_path: Path) -> Iterator[list[Pod]]:
    pods: list[Pod] = []
    yield pods
    for name in [name for pod in pods for name in pod.names]:
        podman("rm", "--force", "--ignore", "--time", "2", name)


def outputs(store: Store) -> dict[str, str]:
    """What the store holds, by the names that the command gave it."""
    output = json.loads(store.get(manifest_key("default", JOB, ATTEMPT)))
    assert output["left_out"] == []
    return {
        each["name"]: store.get(output_key("default", JOB, ATTEMPT, each["index"])).decode()
        for each in output["outputs"]
    }


def test_inputs_come_and_outputs_go_though_the_command_fails(
    podman: Podman, store: Store, s3: servers.S3, made: list[Pod], tmp_path: Path
) -> None:
    made.append(pod := pod_of(podman, tmp_path, store, LOOK))
    assert pod.run() == 7
    seen = outputs(store)
    assert seen["copy"] == "a song"
    assert seen["user"] == "65532\n"
    assert seen["status"].split() == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"]
    assert seen["written"] == ""
    assert seen["network"] == "lo\n"
    # No container has the store's key, and the command does not see the signed URLs.
    environments = [podman("inspect", "--format", "{{json .Config.Env}}", name) for name in pod.names]
    for environment in (*environments, seen["env"]):
        assert "AWS_" not in environment
        assert s3.secret_key not in environment
    assert "X-Amz-Signature" in environments[0]
    assert "X-Amz" not in seen["env"]


def test_a_fork_bomb_ends_at_the_limit_of_processes(
    podman: Podman, store: Store, made: list[Pod], tmp_path: Path
) -> None:
    made.append(pod := pod_of(podman, tmp_path, store, BOMB, "python3"))
    assert pod.run() == 0
    seen = outputs(store)
    assert "refused" in seen
    assert PROCESSES / 2 < int(seen["processes"]) <= PROCESSES
