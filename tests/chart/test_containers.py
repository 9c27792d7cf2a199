"""The images built, and a song generated in the chart's own containers, with this machine's podman."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.chart.podman import Podman, cpu_torch
from tests.chart.rendering import Manifest, Render, find
from tests.processes import eventually
from tests.servers import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

TAG = "0.1.0"
POD = "serinette-test"
KEYS = f"{POD}-keys"
# Our code and the bundled checkpoint, some of it twice (as copied, and with open permissions).
CODE_BYTES = 50_000_000
ADDRESSES = {"serinette-valkey.serinette.svc": "127.0.0.1", "serinette-seaweedfs.serinette.svc": "127.0.0.1"}
PARTS = ("valkey", "seaweedfs", "gateway", "controller", "worker-default")
SECRETS = {"password": "pass@word/%", "AWS_ACCESS_KEY_ID": "serinette", "AWS_SECRET_ACCESS_KEY": "secret-of-the-test"}
# Pools of a fixed size, and keys are asked for, as by default.
VALUES = ("fixed", "auth.enabled=true")


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Podman:
    podman = Podman(tmp_path_factory.mktemp("podman"))
    podman.require()
    return podman


@pytest.fixture(scope="module")
def gateway_image(podman: Podman) -> str:
    podman.build("api/Dockerfile", f"localhost/serinette-gateway:{TAG}")
    return f"localhost/serinette-gateway:{TAG}"


@pytest.fixture(scope="module")
def data_image(podman: Podman) -> str:
    podman.build("api/Dockerfile", f"localhost/serinette-data:{TAG}", "--target", "data")
    return f"localhost/serinette-data:{TAG}"


@pytest.fixture(scope="module")
def worker_image(podman: Podman) -> str:
    podman.build("gpu_worker/Dockerfile", f"localhost/serinette-worker:{TAG}", "--build-arg", "COMPILER=", *cpu_torch())
    return f"localhost/serinette-worker:{TAG}"


def test_a_container_is_unprivileged_and_writes_nothing(podman: Podman, gateway_image: str) -> None:
    script = "import os; print(os.getuid(), os.access('/app', os.W_OK), os.access('/opt/venv', os.W_OK))"
    confined = ["--network", "none", "--read-only", "--cap-drop", "all"]
    assert podman("run", "--rm", *confined, gateway_image, "python", "-c", script) == "10001 False False"
    imports = "import api.app, sys; print('torch' in sys.modules)"
    assert podman("run", "--rm", *confined, "--tmpfs", "/tmp", gateway_image, "python", "-c", imports) == "False"


def test_the_data_image_holds_what_the_chart_starts(podman: Podman, data_image: str) -> None:
    assert "Valkey server v=" in podman("run", "--rm", "--network", "none", data_image, "valkey-server", "--version")
    assert "version" in podman("run", "--rm", "--network", "none", data_image, "weed", "version")


def test_a_change_of_code_moves_megabytes(podman: Podman, gateway_image: str, worker_image: str) -> None:
    for image, folders in ((gateway_image, 3), (worker_image, 2)):
        history = json.loads(podman("history", "--format", "json", image))
        code = [layer for layer in history if "compileall" in layer["CreatedBy"] or "/app/" in layer["CreatedBy"]]
        assert len(code) == folders + 1  # and where they are compiled
        assert sum(layer["size"] for layer in code) < CODE_BYTES
        newest = history[: history.index(code[-1]) + 1]
        assert sum(layer["size"] for layer in newest) < CODE_BYTES, "a large layer lies above the code"


def played(objects: tuple[Manifest, ...], port: int) -> str:
    """The chart's pods as one for `podman kube play`, which knows neither Services nor secretKeyRef nor claims.

    What a container is (image, command, arguments, settings, security, probes, mounts) stays as rendered.
    """
    containers, volumes = [], []
    for part in PARTS:
        item = find(objects, "StatefulSet" if part in ("valkey", "seaweedfs") else "Deployment", f"-{part}")
        container = item.container
        container["env"] = [_literal(entry) for entry in container.get("env", [])]
        for source in container.pop("envFrom", []):
            container["env"] += _from(source, objects)
        # Kubernetes puts variables into arguments, podman does not.
        for entry in container["env"]:
            name = f"$({entry['name']})"
            container["args"] = [each.replace(name, entry["value"]) for each in container.get("args", [])]
        mounted = container["volumeMounts"]
        container["volumeMounts"] = [{**mount, "name": f"{part}-{mount['name']}"} for mount in mounted]
        volumes += [_volume(mount["name"]) for mount in container["volumeMounts"]]
        for entry in container["env"]:
            if entry["name"] == "SERINETTE_METRICS_PORT":
                entry["value"] = str(metrics_port(part))
        # Their ports are each other's business; only the gateway's is shown, and on loopback alone.
        container["ports"] = (
            [{"containerPort": 8019, "hostPort": port, "hostIP": "127.0.0.1"}] if part == "gateway" else []
        )
        containers.append(container)
    gateway = find(objects, "Deployment", "-gateway").pod or {}
    aliases = [{"ip": address, "hostnames": [name]} for name, address in ADDRESSES.items()]
    spec = {
        "securityContext": gateway["securityContext"],
        "hostAliases": aliases,
        "restartPolicy": "Always",
        "containers": containers,
        "volumes": volumes,
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD}, "spec": spec}
    return yaml.safe_dump_all([_declared(objects), pod])


def _volume(name: str) -> dict[str, Any]:
    return {"name": name, "configMap": {"name": KEYS}} if name == "gateway-keys" else {"name": name, "emptyDir": {}}


def _declared(objects: tuple[Manifest, ...]) -> dict[str, Any]:
    """The Secret with digests of keys, as what podman can mount."""
    data = {name: base64.b64decode(text).decode() for name, text in find(objects, "Secret", "-keys")["data"].items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": KEYS}, "data": data}


def _literal(entry: dict[str, Any]) -> dict[str, Any]:
    if "valueFrom" not in entry:
        return entry
    return {"name": entry["name"], "value": SECRETS[entry["valueFrom"]["secretKeyRef"]["key"]]}


def _from(source: dict[str, Any], objects: tuple[Manifest, ...]) -> list[dict[str, str]]:
    if "configMapRef" in source:
        data = find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
        return [{"name": name, "value": value} for name, value in data.items()]
    return [{"name": name, "value": value} for name, value in SECRETS.items() if name.startswith("AWS_")]


@pytest.fixture
def url(
    podman: Podman, render: Render, gateway_image: str, data_image: str, worker_image: str, tmp_path: Path
) -> Iterator[str]:
    """A gateway in a pod that holds everything."""
    port = free_ports(1)[0]
    (tmp_path / "pod.yaml").write_text(played(render(*VALUES, keda=False), port))
    try:
        podman("kube", "play", tmp_path / "pod.yaml", timeout_s=300)
        yield f"http://127.0.0.1:{port}"
    finally:
        podman("pod", "rm", "--force", "--ignore", "--time", "5", POD)
        for left in podman("volume", "ls", "--quiet", "--filter", f"name={KEYS}").split():  # of the ConfigMap
            podman("volume", "rm", left)


def test_the_charts_own_containers_generate_a_song(podman: Podman, render: Render, url: str) -> None:
    objects = render(*VALUES, keda=False)
    key = base64.b64decode(find(objects, "Secret", "-test")["data"]["key"]).decode()
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)

    def ready() -> bool:
        with suppress(httpx.HTTPError, ValueError):
            return httpx.get(f"{url}/readyz", timeout=5).is_success and bool(client.get("/v1/models").json()["models"])
        return False

    assert eventually(ready, 300), "\n".join(
        podman.log(f"{POD}-{part}") for part in ("gateway", "controller", "worker")
    )
    assert httpx.get(f"{url}/v1/models", timeout=30).status_code == 401
    song = find(objects, "Pod", "-test").container
    environment = [f"--env=SERINETTE_API_KEY={key}", "--env=SERINETTE_URL=http://127.0.0.1:8019"]
    printed = podman(
        "run",
        *("--rm", "--pod", POD, "--read-only", "--tmpfs", "/tmp", "--cap-drop", "all"),
        *(*environment, song["image"], *song["command"], "--json"),
        timeout_s=300,
    )
    assert json.loads(printed)["status"] == "succeeded"
    job = client.get("/v1/jobs", params={"label": "from=helm-test"}).json()["jobs"][0]
    assert client.get(f"/v1/jobs/{job['id']}/audio").content.startswith(b"RIFF")
    probe = find(objects, "Deployment", "-worker-default").container["readinessProbe"]["exec"]
    podman("exec", f"{POD}-worker", *probe["command"])
    # As the notes after an install say: a key of one's own is made in the gateway's pod.
    made = podman("exec", f"{POD}-gateway", "python", "-m", "serinette.cli", "keys", "create", "me").splitlines()[-1]
    assert httpx.get(f"{url}/v1/queue", headers={"Authorization": f"Bearer {made}"}, timeout=30).is_success
    for part in ("gateway", "controller", "worker"):
        scrape = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{metrics_port(part)}/metrics').status)"
        assert podman("exec", f"{POD}-{part}", "python", "-c", scrape) == "200"


def metrics_port(part: str) -> int:
    """Of a part in the one pod, where each needs its own."""
    return 9464 + next(number for number, name in enumerate(PARTS) if name.startswith(part))
