"""Containers as jobs by the chart: off by default; what the controller may do, and where their pods reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.settings import GatewaySettings
from controller.cluster import ContainerJobs, connect
from controller.containers.manifest import MAIN, Order, manifest, selector
from controller.settings import ControllerSettings
from scripts.chart_tools import CHART
from serinette.container import Ceilings, ContainerSpec
from serinette.names import Lane
from serinette.settings import ContainerSettings, Machines, SharedSettings
from tests.chart.rendering import Manifest, Render, find, of_kind
from tests.kube import kubernetes_api

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
CONTROLLER = [{"kind": "ServiceAccount", "name": "serinette-controller", "namespace": "serinette"}]
ON = ("containers.enabled=true", 'containers.images=["registry.example.com/audio/"]')
VALUES: dict[str, Any] = yaml.safe_load((CHART / "ci" / "containers-values.yaml").read_text())["containers"]
PREFIX = "SERINETTE_CONTAINERS"


def settings_of(
    objects: tuple[Manifest, ...], part: str, settings: type[SharedSettings], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The settings as a process reads them."""
    with monkeypatch.context() as patch:
        for name, value in find(objects, "Deployment", part).env.items():
            if isinstance(value, str):
                patch.setenv(name, value)
        return settings()


def read(objects: tuple[Manifest, ...], monkeypatch: pytest.MonkeyPatch) -> ContainerSettings:
    found: ContainerSettings = settings_of(objects, "-controller", ControllerSettings, monkeypatch)
    return found


def job_of(settings: ContainerSettings, **spec: Any) -> dict[str, Any]:
    container = ContainerSpec.model_validate({"image": "registry.example.com/audio/stems:1", **spec})
    order = Order("2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10", "team-a", "attempt", Lane.NORMAL, container, 600)
    return manifest(order, settings)


@pytest.mark.parametrize("values", ["default", "every", "gpu"])
def test_off_there_is_nothing_of_them(render: Render, values: str) -> None:
    objects = render(values)
    labels = [item["metadata"].get("labels", {}) for item in objects]
    assert "container" not in {each.get("app.kubernetes.io/component") for each in labels}
    assert PREFIX not in str(objects)


def test_the_charts_defaults_are_the_settings(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(render("default", *ON), monkeypatch)
    own = {"containers", "containers_images", "containers_namespace", "containers_steps_image", "containers_labels"}
    own |= {"containers_instance", "containers_service_account"}
    for name, field in ContainerSettings.model_fields.items():
        if name.startswith("containers") and name not in own:
            assert getattr(settings, name) == field.get_default(call_default_factory=True), name
    assert settings.containers_namespace == settings.containers_instance == "serinette"
    assert settings.containers_steps_image == "registry.example.com/music/serinette-gateway:0.1.0"
    assert settings.containers_labels == {"app.kubernetes.io/part-of": "serinette"}


def test_every_value_reaches_gateway_and_controller(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render("containers")
    settings = read(objects, monkeypatch)
    gateway = settings_of(objects, "-gateway", GatewaySettings, monkeypatch)
    names = [name for name in ContainerSettings.model_fields if name.startswith("containers")]
    assert {name: getattr(settings, name) for name in names} == {name: getattr(gateway, name) for name in names}
    assert {f"SERINETTE_{name.upper()}" for name in names} == {
        name for name in find(objects, "Deployment", "-gateway").env if name.startswith(PREFIX)
    }, "all of them can be set"
    assert (list(settings.containers_images), settings.containers_namespace) == (VALUES["images"], "strangers")
    assert list(settings.containers_writable_images) == VALUES["writableImages"]
    assert {name: secret.model_dump() for name, secret in settings.containers_secrets.items()} == VALUES["secrets"]
    big = {"key": "gpu", "operator": "Exists"}
    assert settings.containers_machines == {
        "default": Machines(node_selector={"pool": "cpu"}),
        "big": Machines(
            node_selector={"gpu": "h100"}, tolerations=(big,), gpu_resource="amd.com/gpu", runtime_class="gvisor"
        ),
    }
    most = {"cpu": 7.5, "memory_mib": 32769, "disk_mib": 102401, "timeout_s": 21599}
    assert settings.ceilings_of("other") == Ceilings(gpus=2, **most)
    assert settings.ceilings_of("acme") == Ceilings(gpus=4, **most), "the others are the defaults"
    for value in ("max_gpus", "max_jobs", "start_s", "grace_s", "log_bytes", "output_files", "output_bytes"):
        head, *rest = value.split("_")
        assert getattr(settings, f"containers_{value}") == VALUES[head + "".join(map(str.capitalize, rest))], value
    assert settings.containers_store_endpoint == VALUES["storeEndpoint"]
    assert settings.containers_labels["kueue.x-k8s.io/queue-name"] == "gpus"
    assert settings.containers_labels["team"] == "music"


def test_each_lane_has_its_class(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render("containers")
    classes = read(objects, monkeypatch).containers_priority_classes
    made = {item.name: item for item in of_kind(objects, "PriorityClass")}
    assert classes[Lane.HIGH] == "priority-of-mine" and classes[Lane.HIGH] not in made
    assert {made[classes[lane]]["value"] for lane in (Lane.NORMAL, Lane.LOW)} == {500, -5}
    assert {item["preemptionPolicy"] for item in made.values()} == {"Never"}
    other = read(render("containers", "containers.priorityClasses.values.normal=600"), monkeypatch)
    assert other.containers_priority_classes[Lane.NORMAL] not in made, "Kubernetes refuses to change a class's value"


def test_controller_alone_may_do_what_it_does(render: Render, tmp_path: Path) -> None:
    objects = render("containers")
    assert TOKEN in str(find(objects, "Deployment", "-controller")), "though cluster.explain is off"
    assert [item.name for item in objects if item.pod and TOKEN in str(item.pod)] == ["serinette-controller"]
    (role,), (binding,) = of_kind(objects, "Role"), of_kind(objects, "RoleBinding")
    assert not [*of_kind(objects, "ClusterRole"), *of_kind(objects, "ClusterRoleBinding")]
    assert {each["metadata"]["namespace"] for each in (role, binding)} == {"strangers"}
    assert (binding["subjects"], binding["roleRef"]["name"]) == (CONTROLLER, role.name)
    granted = {
        (f"{group}/{resource}".strip("/"), verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    account = find(objects, "ServiceAccount", "-container").name
    assert next(rule for rule in role["rules"] if "serviceaccounts" in rule["resources"])["resourceNames"] == [account]
    assert granted == used(tmp_path, account)


def used(directory: Path, account: str) -> set[tuple[str, str]]:
    """What the controller's client asks an API server, as a Role names it."""
    verbs = {"POST": "create", "DELETE": "delete", "PATCH": "patch", "PUT": "update"}
    with kubernetes_api() as kube:
        metadata = {"name": account, "namespace": "strangers"}
        kube.add({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
        kube.logs["pod"] = ""
        connection = connect(kube.kubeconfig(directory))
        assert connection
        jobs = ContainerJobs(connection, "strangers", selector("serinette"))
        jobs.account(account)
        jobs.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "container-1"}})
        jobs.jobs()
        jobs.pods()
        jobs.log("pod", MAIN, "", 1)
        jobs.delete("container-1")
        # Their public methods, and no other: one that is added is to be granted, too.
        assert {name for name in vars(ContainerJobs) if not name.startswith("_")} == {
            *("account", "create", "jobs", "pods", "log", "delete"),
        }
        found = set()
        for asked in kube.requests:
            group, _, path = asked.path.partition("/namespaces/strangers/")
            resource, _, rest = path.partition("/")
            resource += "/log" if rest.endswith("/log") else ""
            group = "batch/" if "batch" in group else ""
            found.add((group + resource, verbs.get(asked.method, "get" if rest else "list")))
    return found


def test_their_pods_have_an_account_without_rights_that_they_go_with(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helm deletes the account, and Kubernetes what belongs to it: `helm uninstall` leaves no Job."""
    for values, settings, namespace in (("containers", (), "strangers"), ("gpu", ON + STORE_TO, "serinette")):
        objects = render(values, *settings)
        found = read(objects, monkeypatch)
        account = find(objects, "ServiceAccount", "-container")
        assert (found.containers_service_account, found.containers_namespace) == (account.name, namespace)
        assert account["metadata"]["namespace"] == namespace
        assert account["automountServiceAccountToken"] is False
        assert "annotations" not in account["metadata"], "a cloud would give its pods the store's rights"
        bindings = [*of_kind(objects, "RoleBinding"), *of_kind(objects, "ClusterRoleBinding")]
        assert not [each for each in bindings if account.name in str(each["subjects"])]
        assert job_of(found)["spec"]["template"]["spec"]["serviceAccountName"] == account.name
    secrets = find(render("containers"), "ServiceAccount", "-container")["imagePullSecrets"]
    assert [each["name"] for each in secrets] == ["registry-credentials", "credentials-of-strangers"]


STORE_TO = ('containers.network.storeTo=[{"ipBlock": {"cidr": "0.0.0.0/0"}}]',)


def test_a_pod_reaches_the_store_and_is_reached_by_none(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render("default", *ON)
    labels = job_of(read(objects, monkeypatch))["spec"]["template"]["metadata"]["labels"]
    policies = of_kind(objects, "NetworkPolicy")
    (policy,) = (each for each in policies if each["spec"]["podSelector"]["matchLabels"].items() <= labels.items())
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"] and "ingress" not in policy["spec"]
    dns, store = policy["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert dns["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert store["ports"] == [{"port": 8333, "protocol": "TCP"}]
    (to,) = store["to"]
    seaweedfs = find(objects, "StatefulSet", "-seaweedfs")["spec"]["template"]["metadata"]["labels"]
    assert to["podSelector"]["matchLabels"].items() <= seaweedfs.items()
    (rule,) = find(objects, "NetworkPolicy", "-seaweedfs")["spec"]["ingress"]
    admitted = [each for each in rule["from"] if "namespaceSelector" in each]
    assert [each["podSelector"]["matchLabels"].items() <= labels.items() for each in admitted] == [True]
    (elsewhere,) = find(render("default"), "NetworkPolicy", "-seaweedfs")["spec"]["ingress"]
    assert len(elsewhere["from"]) == len(rule["from"]) - 1


def test_an_external_store_is_reached_at_its_configured_endpoint(render: Render) -> None:
    objects = render("containers")
    policy = find(objects, "NetworkPolicy", "-container")
    assert policy["metadata"]["namespace"] == "strangers"
    dns, store, more = policy["spec"]["egress"]
    assert (dns["to"], store["to"]) == (VALUES["network"]["dnsTo"], VALUES["network"]["storeTo"])
    assert store["ports"] == [{"port": 9001, "protocol": "TCP"}], "of containers.storeEndpoint"
    assert [more] == VALUES["network"]["extraEgress"]
    cloud = find(render("gpu", *ON, *STORE_TO), "NetworkPolicy", "-container")
    assert cloud["spec"]["egress"][1]["ports"] == [{"port": 443, "protocol": "TCP"}]
    assert "988" not in json.dumps(cloud), "a metadata server is for our pods, not for theirs"


def test_controller_reaches_the_api_server(render: Render) -> None:
    def ports(*settings: str) -> set[int]:
        rules = find(render("every", *settings), "NetworkPolicy", "-controller")["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert not {443, 6443} & ports()
    assert ports(*ON) >= {443, 6443}
