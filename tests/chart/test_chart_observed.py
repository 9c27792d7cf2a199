"""What Prometheus and Grafana are given, and who may reach what they read; webhooks' way out."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml

from scripts.alerts import expressions
from scripts.chart_tools import CHART, ROOT, CommandFailed, template_command
from scripts.chart_tools import run as command
from serinette.webhook import is_public
from tests.chart.rendering import Manifest, Render, find, manifests, of_kind

PARTS = ("gateway", "controller", "worker")
ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"][0]["rules"]


def ours(objects: tuple[Manifest, ...]) -> list[Manifest]:
    return of_kind(objects, "Deployment")


@pytest.mark.parametrize(("values", "port"), [("default", 9464), ("monitoring", 9090)])
def test_every_process_of_ours_is_found_by_the_podmonitor(render: Render, values: str, port: int) -> None:
    objects = render(values, "metrics.podMonitor.enabled=true")
    (monitor,) = of_kind(objects, "PodMonitor")
    selector = monitor["spec"]["selector"]
    (wanted,) = selector["matchExpressions"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for item in ours(objects):
        labels = item["spec"]["template"]["metadata"]["labels"]
        assert selector["matchLabels"].items() <= labels.items()
        assert labels[wanted["key"]] in wanted["values"]
        ports = {each["name"]: each["containerPort"] for each in item.container["ports"]}
        assert ports[endpoint["port"]] == port == int(item.env["SERINETTE_METRICS_PORT"])
        assert item.env["SERINETTE_METRICS_HOST"] == "0.0.0.0"


def test_prometheus_alone_reaches_the_metrics(render: Render) -> None:
    for part in PARTS:
        (rule,) = (
            rule
            for rule in find(render("monitoring"), "NetworkPolicy", f"-{part}")["spec"]["ingress"]
            if rule["ports"] == [{"port": 9090, "protocol": "TCP"}]
        )
        assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
        spec = find(render("default", "metrics.enabled=false"), "NetworkPolicy", f"-{part}")["spec"]
        assert len(spec.get("ingress", [])) == (part == "gateway")


def test_without_metrics_nothing_listens(render: Render) -> None:
    for item in ours(render("default", "metrics.enabled=false")):
        assert "SERINETTE_METRICS_PORT" not in item.env
        assert "metrics" not in {port["name"] for port in item.container.get("ports", [])}


def test_alerts_speak_of_this_release_alone() -> None:
    output = command([*template_command([CHART / "ci" / "monitoring-values.yaml"]), "--namespace", "music"])
    (rule,) = of_kind(manifests(output), "PrometheusRule")
    for each in (each for group in rule["spec"]["groups"] for each in group["rules"]):
        for jobs in re.findall(r'job="([^"]*)"', each["expr"]):
            assert jobs == "music/studio"
        assert set(re.findall(r'namespace="([^"]*)"', each["expr"])) <= {"music"}
        assert "serinette-worker-" not in each["expr"]
        for metric, selector in re.findall(r"(serinette_\w+)(\{[^}]*\})?", each["expr"]):
            assert 'job="music/studio"' in selector, f"{each['alert']}: {metric} of every release"
    assert rule["metadata"]["labels"]["release"] == "prometheus"


@pytest.mark.parametrize("part", ["podMonitor", "rules"])
def test_a_cluster_without_the_operator_is_refused(part: str) -> None:
    without = template_command([CHART / "ci" / "default-values.yaml"], [f"metrics.{part}.enabled=true"])
    while "monitoring.coreos.com/v1" in without:
        place = without.index("monitoring.coreos.com/v1")
        del without[place - 1 : place + 1]
    with pytest.raises(CommandFailed, match="Prometheus operator is not in this cluster"):
        command(without)


def test_every_alert_has_a_severity_a_remedy_and_an_entry_in_the_docs() -> None:
    listed = re.findall(r"^\| `(Serinette\w+)` \|", (ROOT / "docs/observability.md").read_text(), re.MULTILINE)
    assert listed == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "action"}


def test_grafanas_sidecar_finds_a_dashboard_of_every_release(render: Render) -> None:
    found = find(render("monitoring"), "ConfigMap", "-dashboard")
    assert found["metadata"]["labels"]["dashboards"] == "yes"
    assert found["metadata"]["annotations"] == {"grafana_folder": "Music"}
    dashboard = json.loads(found["data"]["serinette.json"])
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers)) > 10
    assert all('job=~"$job"' in expression for expression in expressions() if "serinette_" in expression)
    assert not [item for item in of_kind(render("default"), "ConfigMap") if item.name.endswith("-dashboard")]


def test_webhooks_are_signed_by_both_and_leave_from_the_controller(render: Render) -> None:
    objects = render("monitoring")
    for part in ("gateway", "controller"):
        env = find(objects, "Deployment", f"-{part}").env
        assert env["SERINETTE_WEBHOOK_SECRET"]["secretKeyRef"] == {"name": "webhooks", "key": "word"}
        assert env["SERINETTE_WEBHOOK_SECRETS"]["secretKeyRef"] == {"name": "webhooks", "key": "tenants"}
        assert json.loads(env["SERINETTE_WEBHOOK_NETWORKS"]) == ["10.20.0.0/16"]
    assert not any("WEBHOOK" in name for name in find(objects, "Deployment", "-worker-default").env)
    rules = {part: way_out(find(objects, "NetworkPolicy", f"-{part}")) for part in PARTS}
    assert (rules["gateway"], rules["worker"]) == ([], [])
    (rule,) = rules["controller"]
    assert [port["port"] for port in rule["ports"]] == [443, 8443]
    blocks = [each["ipBlock"] for each in rule["to"]]
    for address, reached in (
        *((text, True) for text in ("93.184.216.34", "10.20.3.4", "2606:4700::1111")),
        *(
            (text, False)
            for text in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "172.20.1.1", "192.168.1.1", "fd00::1")
        ),
    ):
        assert admitted(address, blocks) is reached, address
        assert is_public(ip_address(address)) is (reached and not address.startswith("10.20.")), address
    assert not way_out(find(render("default"), "NetworkPolicy", "-controller"))


def way_out(policy: Manifest) -> list[dict[str, Any]]:
    return [rule for rule in policy["spec"]["egress"] if any("ipBlock" in each for each in rule.get("to", []))]


def admitted(text: str, blocks: list[dict[str, Any]]) -> bool:
    address = ip_address(text)
    return any(
        address in ip_network(block["cidr"])
        and not any(address in ip_network(cidr) for cidr in block.get("except", []))
        for block in blocks
    )
