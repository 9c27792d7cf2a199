"""Pod security of every pod, and the settings of each component."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_settings import BaseSettings

from api.settings import GatewaySettings
from controller.settings import ControllerSettings
from gpu_worker.settings import WorkerSettings
from tests.chart.rendering import Manifest, Render, find, of_kind

VALUES = ("default", "fixed", "external", "gpu", "sentinel", "monitoring", "every", "containers")
# What the restricted profile admits.
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def pods(objects: tuple[Manifest, ...]) -> list[Manifest]:
    return [item for item in objects if item.pod is not None]


@pytest.mark.parametrize("values", VALUES)
def test_every_pod_keeps_to_the_restricted_profile(render: Render, values: str) -> None:
    objects = pods(render(values))
    assert len(objects) >= 4
    for item in objects:
        pod: dict[str, Any] = item.pod or {}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
        assert item.container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert item.container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("values", VALUES)
def test_only_a_cache_on_the_node_asks_for_more_than_restricted_volumes(render: Render, values: str) -> None:
    for item in pods(render(values)):
        kinds = {kind for volume in (item.pod or {}).get("volumes", []) for kind in volume.keys() - {"name"}}
        allowed = (
            {"hostPath"} if item.name.endswith("-worker-spot") else {"image"} if item.name.endswith("-small") else set()
        )
        assert kinds <= RESTRICTED_VOLUMES | allowed


@pytest.mark.parametrize("values", VALUES)
def test_no_service_of_ours_can_set_our_settings(render: Render, values: str) -> None:
    """A Service called serinette sets SERINETTE_PORT to tcp://... in every pod, unless links are off."""
    assert all((item.pod or {})["enableServiceLinks"] is False for item in pods(render(values)))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(
    ("part", "settings"),
    [("-gateway", GatewaySettings), ("-controller", ControllerSettings), ("-worker-", WorkerSettings)],
)
def test_our_processes_take_what_they_are_given(
    render: Render, values: str, part: str, settings: type[BaseSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {f"SERINETTE_{name.upper()}" for name in settings.model_fields}
    for item in of_kind(render(values), "Deployment"):
        if part not in item.name:
            continue
        config = find(render(values), "ConfigMap", "-settings")
        given = {name: value for name, value in {**config["data"], **item.env}.items() if isinstance(value, str)}
        assert {name for name in item.env if name.startswith("SERINETTE_")} <= known
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        read = settings()
        assert read.model_fields_set >= {"redis_url", "redis_prefix", "store_url"}


def test_names_of_the_environment_are_given_once_and_the_operators_win(render: Render) -> None:
    gateway = find(render("external"), "Deployment", "-gateway")
    names = [entry["name"] for entry in gateway.container["env"]]
    assert len(names) == len(set(names))
    assert gateway.env["SERINETTE_MAX_ATTEMPTS"] == "5"
    assert gateway.env["TZ"] == "Asia/Tokyo"


@pytest.mark.parametrize(
    "setting",
    [
        'settings.logLevel="DEBUG"',
        "gateway.replicas=5",
        "gateway.maxAttempts=7",
        'images.gateway.tag="2.0.0"',
        'images.data.tag="2.0.0"',
        "poolDefaults.scaling.cooldownS=60",
        "poolDefaults.max=9",
        "commonLabels={}",
    ],
)
def test_what_concerns_no_worker_drains_none(render: Render, setting: str) -> None:
    """A worker's pod is as it was: Kubernetes leaves it alone."""
    before, after = (find(render("default", *more), "Deployment", "-worker-default") for more in ((), (setting,)))
    assert before["spec"]["template"] == after["spec"]["template"]


def test_a_setting_restarts_gateway_and_controller(render: Render) -> None:
    for part in ("-gateway", "-controller"):
        before, after = (
            find(render("default", *more), "Deployment", part)["spec"]["template"]["metadata"]["annotations"]
            for more in ((), ("settings.retentionS=3600",))
        )
        assert before["checksum/settings"] != after["checksum/settings"]


@pytest.mark.parametrize("values", VALUES)
def test_a_pods_template_names_no_version_of_the_chart(render: Render, values: str) -> None:
    for item in of_kind(render(values), "Deployment"):
        labels = item["spec"]["template"]["metadata"]["labels"]
        assert not {"helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/managed-by"} & labels.keys()
        assert item["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_images_come_from_one_registry_by_tag_or_digest(render: Render) -> None:
    images = {item.name: item.container["image"] for item in pods(render("external"))}
    assert images["studio-gateway"] == f"registry.example.com:5000/music/serinette-gateway@sha256:{'1' * 64}"
    assert images["studio-controller"] == images["studio-gateway"]
    assert images["studio-worker-default"] == f"registry.example.com:5000/music/serinette-worker@sha256:{'2' * 64}"
    default = {item.container["image"] for item in pods(render("default"))}
    assert default == {f"registry.example.com/music/serinette-{name}:0.1.0" for name in ("gateway", "worker", "data")}
    full = render(
        "default",
        'global.imageRegistry=""',
        *(f'images.{name}.repository="host/{name}"' for name in ("gateway", "worker", "data")),
    )
    assert {item.container["image"] for item in pods(full)} == {
        f"host/{name}:0.1.0" for name in ("gateway", "worker", "data")
    }


def test_a_gpu_pool_asks_for_its_one_gpu_and_drains_in_its_grace(render: Render) -> None:
    objects = render("gpu")
    for pool, resource in (
        ("turbo", "nvidia.com/gpu"),
        ("small", "nvidia.com/mig-1g.10gb"),
        ("shared", "nvidia.com/gpu.shared"),
    ):
        worker = find(objects, "Deployment", f"-worker-{pool}")
        assert worker.container["resources"]["limits"][resource] == 1
        pod = worker.pod or {}
        assert int(worker.env["SERINETTE_DRAIN_TIMEOUT_S"]) == pod["terminationGracePeriodSeconds"] - 60
        assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    turbo = find(objects, "Deployment", "-worker-turbo")
    assert (turbo.pod or {})["runtimeClassName"] == "nvidia"
    assert turbo["spec"]["template"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    spot = find(objects, "Deployment", "-worker-spot")
    assert spot.env["SERINETTE_DRAIN_TIMEOUT_S"] == "0"
    assert (spot.pod or {})["terminationGracePeriodSeconds"] == 25


def test_gpu_example_needs_a_registry_alone(render: Render) -> None:
    objects = render("values-gpu", 'global.imageRegistry="registry.example.com/you"')
    worker = find(objects, "Deployment", "-worker-turbo")
    assert worker.container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "runtimeClassName" not in (worker.pod or {})
    assert find(objects, "Deployment", "-worker-default").container["resources"]["limits"].keys() == {"memory"}
    assert find(objects, "Deployment", "-gateway").env["SERINETTE_POOL"] == "turbo"


def test_every_kind_of_cache_is_where_checkpoints_go(render: Render) -> None:
    objects = render("gpu")
    volumes = {
        pool: {
            volume["name"]: volume for volume in (find(objects, "Deployment", f"-worker-{pool}").pod or {})["volumes"]
        }
        for pool in ("turbo", "small", "spot", "shared")
    }
    assert volumes["turbo"]["checkpoints"]["persistentVolumeClaim"] == {"claimName": "serinette-worker-turbo"}
    assert find(objects, "PersistentVolumeClaim", "-turbo")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert volumes["shared"]["checkpoints"]["persistentVolumeClaim"] == {"claimName": "checkpoints"}
    assert volumes["spot"]["checkpoints"]["hostPath"]["path"] == "/var/lib/serinette"
    assert volumes["small"]["models"]["image"]["reference"] == "registry.example.com/music/checkpoint:1"
    worker = find(objects, "Deployment", "-worker-small")
    mounts = {mount["name"]: mount["mountPath"] for mount in worker.container["volumeMounts"]}
    assert mounts["models"] == worker.env["SERINETTE_MODEL"] == "/models"
    assert mounts["checkpoints"] == f"{worker.env['SERINETTE_WORK_DIR']}/checkpoints"


@pytest.mark.parametrize(
    ("settings", "policy"),
    [
        ((), "always"),
        (('gateway.durability="fsync"', 'valkey.appendfsync="everysec"'), "everysec"),
    ],
)
def test_valkey_syncs_before_it_answers(render: Render, settings: tuple[str, ...], policy: str) -> None:
    objects = render("default", *settings)
    pod = find(objects, "StatefulSet", "-valkey").pod
    assert pod
    args = pod["containers"][0]["args"]
    assert args[args.index("--appendfsync") + 1] == policy
    durability = find(objects, "Deployment", "-gateway").env["SERINETTE_DURABILITY"]
    assert durability == ("fsync" if settings else "process")


@pytest.mark.parametrize(
    ("values", "settings", "names"),
    [
        ("default", (), "{}-valkey.serinette.svc,{}-seaweedfs.serinette.svc"),
        ("default", ("seaweedfs.enabled=false", 'store.url="gs://songs"'), "{}-valkey.serinette.svc"),
        ("default", ("valkey.enabled=false", 'redis.host="redis.example.com"'), "{}-seaweedfs.serinette.svc"),
        ("external", (), None),
    ],
)
def test_workers_know_which_services_go_with_the_release(
    render: Render, values: str, settings: tuple[str, ...], names: str | None
) -> None:
    """Those, and not a cloud's own store or a Redis that stays, tell a draining worker of an uninstall."""
    worker = next(item for item in of_kind(render(values, *settings), "Deployment") if "-worker-" in item.name)
    given = worker.env.get("SERINETTE_OWN_SERVICES")
    assert given == (names and names.replace("{}", worker.name.partition("-worker-")[0]))
