"""How the gateway is reached and scaled, what keeps the data, and the chart inside another chart."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from scripts.chart_tools import CHART, KEDA_API, CommandFailed, helm, run, template_command
from tests.chart.rendering import Render, find, manifests, of_kind


def test_ingress_and_route_lead_to_the_gateway_below_one_prefix(render: Render) -> None:
    objects = render("edge")
    route, ingress = find(objects, "HTTPRoute", "-gateway"), find(objects, "Ingress", "-gateway")
    (rule,) = route["spec"]["rules"]
    assert rule["matches"] == [{"path": {"type": "PathPrefix", "value": "/music/"}}]
    assert rule["timeouts"] == {"request": "7200s"}
    assert rule["backendRefs"] == [{"name": "serinette-gateway", "port": 8019}]
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways", "sectionName": "https"}]
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/music", "Prefix")
    assert find(objects, "Deployment", "-gateway").env["SERINETTE_ROOT_PATH"] == "/music"


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        ((), None),
        (("gateway.ingress.enabled=true",), None),
        (('gateway.ingress.path="/unused"',), None),
        (("gateway.ingress.enabled=true", 'gateway.ingress.path="/a/b/"'), "/a/b"),
        (("gateway.httpRoute.enabled=true", 'gateway.httpRoute.parentRefs=[{"name": "g"}]'), None),
    ],
)
def test_the_gateway_knows_its_prefix(render: Render, settings: tuple[str, ...], prefix: str | None) -> None:
    env = find(render("default", *settings), "Deployment", "-gateway").env
    assert env.get("SERINETTE_ROOT_PATH") == prefix


def test_a_cluster_without_the_gateway_api_is_refused(render: Render) -> None:
    render()
    command = template_command([CHART / "ci" / "edge-values.yaml"])
    place = command.index("gateway.networking.k8s.io/v1")
    with pytest.raises(CommandFailed, match="the Gateway API is not in this cluster"):
        run([*command[: place - 1], *command[place + 1 :]])


def test_a_load_balancer_of_ones_own_class(render: Render) -> None:
    spec = find(render("edge"), "Service", "-gateway")["spec"]
    assert (spec["loadBalancerClass"], spec["externalTrafficPolicy"]) == ("example.com/internal", "Local")
    assert spec["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert spec["ports"][0]["nodePort"] == 30819
    plain = find(render("default"), "Service", "-gateway")["spec"]
    assert plain.keys() == {"type", "selector", "ports"} and "nodePort" not in plain["ports"][0]
    inside = render(
        "edge",
        'gateway.service.type="ClusterIP"',
        "gateway.service.nodePort=null",
        'gateway.service.externalTrafficPolicy=""',
    )
    assert "loadBalancerClass" not in find(inside, "Service", "-gateway")["spec"]


def test_an_autoscaler_and_the_chart_do_not_both_say_how_many(render: Render) -> None:
    objects = render("edge")
    (autoscaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    gateway = find(objects, "Deployment", "-gateway")
    assert autoscaler["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": gateway.name}
    assert (autoscaler["spec"]["minReplicas"], autoscaler["spec"]["maxReplicas"]) == (3, 11)
    assert "replicas" not in gateway["spec"]
    assert find(objects, "PodDisruptionBudget", "-gateway")
    alone = render("edge", "gateway.autoscaling.min=1")
    assert [item.name for item in of_kind(alone, "PodDisruptionBudget")] == ["serinette-controller"]
    assert not of_kind(render("default"), "HorizontalPodAutoscaler")


@pytest.mark.parametrize("part", ["valkey", "seaweedfs"])
def test_where_the_data_is(render: Render, part: str) -> None:
    def kept(values: str) -> tuple[list[dict[str, object]], list[str]]:
        item = find(render(values), "StatefulSet", f"-{part}")
        volumes = [each for each in (item.pod or {}).get("volumes", []) if each["name"] == "data"]
        assert {"name": "data", "mountPath": "/data"} in item.container["volumeMounts"]
        return volumes, [json.dumps(each["spec"]) for each in item["spec"].get("volumeClaimTemplates", [])]

    volumes, claims = kept("default")
    assert not volumes and len(claims) == 1 and "volumeName" not in claims[0]
    volumes, (claim,) = kept("every")
    assert not volumes and f'"volumeName": "volume-of-{part}"' in claim
    assert kept("edge") == ([{"name": "data", "persistentVolumeClaim": {"claimName": f"claim-of-{part}"}}], [])
    size = "8Gi" if part == "valkey" else "50Gi"
    assert kept("monitoring") == ([{"name": "data", "emptyDir": {"sizeLimit": size}}], [])


def test_the_alert_of_full_volumes_names_the_claims_that_hold_the_data(render: Render) -> None:
    for values, claims in (
        ("default", "data-serinette-valkey-0|data-serinette-seaweedfs-0"),
        ("edge", "claim-of-valkey|claim-of-seaweedfs"),
    ):
        (rules,) = of_kind(render(values, "metrics.rules.enabled=true"), "PrometheusRule")
        (alert,) = [each for each in rules["spec"]["groups"][0]["rules"] if each["alert"] == "SerinetteVolumeFills"]
        assert f'persistentvolumeclaim=~"{claims}"' in alert["expr"]


def test_the_gpu_values_keep_their_checkpoint(render: Render) -> None:
    objects = manifests(run(template_command([CHART / "ci" / "default-values.yaml", CHART / "values-gpu.yaml"])))
    worker = find(objects, "Deployment", "-worker-turbo")
    (cache,) = [volume for volume in (worker.pod or {})["volumes"] if volume["name"] == "checkpoints"]
    claim = find(objects, "PersistentVolumeClaim", cache["persistentVolumeClaim"]["claimName"])
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"], "each worker of the pool mounts it"
    assert render


def test_names_may_be_shorter(render: Render) -> None:
    assert find(render("default", 'nameOverride="songs"'), "Service", "serinette-songs-gateway")
    assert find(render("default", 'nameOverride="serinette"'), "Service", "serinette-gateway")


@pytest.fixture(scope="module")
def umbrella(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chart with ours as a conditional dependency, as `helm dependency update` leaves it."""
    directory = tmp_path_factory.mktemp("umbrella")
    dependency = {"name": "serinette", "version": "0.1.0", "condition": "serinette.enabled"}
    chart = {"apiVersion": "v2", "name": "studio", "version": "1.0.0", "dependencies": [dependency]}
    (directory / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (directory / "charts").mkdir()
    (directory / "charts" / "serinette").symlink_to(CHART)
    shared = {"imageRegistry": "registry.example.com/music", "storageClass": "fast", "others": {"a": 1}}
    (directory / "values.yaml").write_text(yaml.safe_dump({"global": shared, "serinette": {"enabled": True}}))
    return directory


@pytest.mark.parametrize("enabled", [True, False])
def test_in_an_umbrella_chart_it_can_be_switched(render: Render, umbrella: Path, enabled: bool) -> None:
    render()
    command: list[str | Path] = [
        helm(),
        "template",
        "shop",
        umbrella,
        "--namespace",
        "shop",
        "--api-versions",
        KEDA_API,
    ]
    objects = manifests(run([*command, "--set", f"serinette.enabled={str(enabled).lower()}"]))
    assert bool(objects) is enabled
    if enabled:
        assert {item.name for item in of_kind(objects, "Deployment")} == {
            *("shop-serinette-gateway", "shop-serinette-controller", "shop-serinette-worker-default")
        }
        images = {image for item in objects if item.pod for image in re.findall(r"registry\S+?:", str(item.pod))}
        assert images == {f"registry.example.com/music/serinette-{name}:" for name in ("gateway", "worker", "data")}


def test_two_copies_in_an_umbrella_chart_are_apart(render: Render, tmp_path: Path) -> None:
    """An umbrella's parts have one release: no Service, policy or budget of one may select the other's pods."""
    render()
    copies = [{"name": "serinette", "version": "0.1.0", "alias": alias} for alias in ("one", "two")]
    chart = {"apiVersion": "v2", "name": "studio", "version": "1.0.0", "dependencies": copies}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "serinette").symlink_to(CHART)
    shared = {"imageRegistry": "registry.example.com/music", "imagePullSecrets": ["regcred"]}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"global": shared}))
    objects = manifests(run([helm(), "template", "one-two", tmp_path, "--api-versions", KEDA_API]))
    assert len({(item.kind, item.name) for item in objects}) == len(objects)
    templates = [item["spec"]["template"] for item in objects if item.kind in {"Deployment", "StatefulSet"}]
    assert all(template["spec"]["imagePullSecrets"] == [{"name": "regcred"}] for template in templates)
    for item in objects:
        spec = item.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector", {}))
        labels = selector.get("matchLabels", selector)
        chosen = [each for each in templates if labels and labels.items() <= each["metadata"]["labels"].items()]
        assert len({each["metadata"]["labels"]["app.kubernetes.io/instance"] for each in chosen}) <= 1, item.name


def test_the_notes_say_what_is_missing_without_rights_in_the_cluster(render: Render) -> None:
    render()

    def notes(*settings: str) -> str:
        command: list[str | Path] = [helm(), "install", "studio", CHART, "--namespace", "music", "--dry-run=client"]
        command += ["--values", CHART / "ci" / "fixed-values.yaml"]
        output = run([*command, *(part for setting in settings for part in ("--set", setting))])
        return output.partition("NOTES:")[2]

    plain = notes()
    assert "Nothing of this release is cluster-wide." in plain
    assert "cluster.readNodes=true" in plain and "cluster.protect=true" in plain
    assert "cluster.readNodes=true" not in notes("cluster.readNodes=true")
    both = notes("cluster.readNodes=true", "cluster.protect=true")
    assert "a ClusterRole (cluster.readNodes), an admission policy (cluster.protect)." in both
    assert "What is missing" not in both
    assert "cluster.explain=true" in notes("cluster.explain=false")
    lanes = ("containers.enabled=true", "containers.images={a/b}", "containers.priorityClasses.values.high=1")
    wide = "Cluster-wide objects of this release: an admission policy (containers.confine), PriorityClasses"
    assert wide in notes(*lanes)
    assert "accepted jobs are lost with its pod" in notes("valkey.persistence.enabled=false")
