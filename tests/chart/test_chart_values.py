"""The values file is the chart's manual: every line explained, every key known to the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import yaml

from scripts.chart_tools import CHART
from serinette import __version__
from serinette.names import DEFAULT_POOL
from tests.chart.rendering import Render, find, of_kind

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_every_value_has_a_line_that_says_what_it_is() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    key = re.compile(r"^ *[A-Za-z]+: *\S")
    # Of a map written over several lines it is the map that is explained.
    bare = [
        line
        for before, line in pairwise(lines)
        if key.match(line) and not before.lstrip().startswith("#") and not re.search(r"(requests|limits): \{", line)
    ]
    assert bare == []


def unknown(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Values that the schema has no property for, or that it does not close."""
    schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "properties" not in schema:
        return
    if schema.get("additionalProperties") is not False and path != ".global":  # which an umbrella chart shares
        yield f"{path}: open"
    for name, value in values.items():
        if name not in schema["properties"]:
            yield f"{path}.{name}"
        elif isinstance(value, dict):
            yield from unknown(value, schema["properties"][name], f"{path}.{name}")


def test_the_schema_knows_every_value_and_no_other() -> None:
    assert list(unknown(VALUES, SCHEMA)) == []
    assert SCHEMA["properties"].keys() - {"enabled"} == VALUES.keys()  # a subchart's condition
    pool = SCHEMA["properties"]["pools"]["items"]
    assert pool["properties"].keys() == VALUES["poolDefaults"].keys() | {"name"}
    assert pool["additionalProperties"] is False


def test_versions_and_names_are_the_codes() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert VALUES["gateway"]["defaultPool"] == DEFAULT_POOL
    assert VALUES["pools"] == [{"name": DEFAULT_POOL}]


def test_the_ingress_lets_uploads_and_events_pass(render: Render) -> None:
    ingress = find(render("external"), "Ingress", "-gateway")
    annotations = ingress["metadata"]["annotations"]
    nginx = "nginx.ingress.kubernetes.io"
    assert annotations[f"{nginx}/proxy-body-size"] == str(VALUES["gateway"]["maxUploadBytes"])
    assert annotations[f"{nginx}/proxy-buffering"] == annotations[f"{nginx}/proxy-request-buffering"] == "off"
    assert annotations[f"{nginx}/proxy-read-timeout"] == "60", "the operator's own word wins"
    assert annotations[f"{nginx}/proxy-send-timeout"] == "3600"
    assert ingress["spec"]["rules"][0]["host"] == "songs.example.com"
    assert not of_kind(render("default"), "Ingress")


def test_valkey_forgets_no_job(render: Render) -> None:
    arguments = find(render("default"), "StatefulSet", "-valkey").container["args"]
    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert (options["--appendonly"], options["--maxmemory-policy"]) == ("yes", "noeviction")
    assert options["--stream-node-max-bytes"] == "512", "else each job's first event takes 4 KiB"
    assert options["--requirepass"] == "$(VALKEY_PASSWORD)"


def test_only_keda_reaches_valkey_from_outside(render: Render) -> None:
    policy = find(render("default"), "NetworkPolicy", "-valkey")["spec"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": 6379, "protocol": "TCP"}]
    pods, kedas = rule["from"]
    (expression,) = pods["podSelector"]["matchExpressions"]
    assert sorted(expression["values"]) == ["controller", "gateway", "worker"]
    assert kedas == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}
    assert policy["policyTypes"] == ["Ingress", "Egress"] and "egress" not in policy


def test_every_pod_has_a_network_policy(render: Render) -> None:
    for values in ("default", "external", "gpu", "sentinel", "monitoring"):
        objects = render(values)
        selectors = [item["spec"]["podSelector"]["matchLabels"] for item in of_kind(objects, "NetworkPolicy")]
        for item in objects:
            if item.pod is not None:
                labels = item["metadata" if item.kind == "Pod" else "spec"]
                labels = labels["labels"] if item.kind == "Pod" else labels["template"]["metadata"]["labels"]
                assert any(selector.items() <= labels.items() for selector in selectors), item.name


def test_existing_secrets_are_used_and_none_is_made(render: Render) -> None:
    assert not of_kind(render("k8s"), "Secret")
    made = {item.name: item["data"].keys() for item in of_kind(render("default"), "Secret")}
    assert made == {
        "serinette-valkey": {"password"},
        "serinette-seaweedfs": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
        "serinette-keys": {"keys.json"},
        "serinette-test": {"key"},
    }


def test_extra_objects_are_rendered_as_templates(render: Render) -> None:
    objects = render("external")
    assert find(objects, "ConfigMap", "studio-extra")["data"] == {"release": "serinette"}
    assert find(objects, "ConfigMap", "studio-text")


CI = {path.name: yaml.safe_load(path.read_text()) for path in sorted((CHART / "ci").glob("*-values.yaml"))}
EVERY = CI["every-values.yaml"]


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def at(values: object, path: tuple[str, ...]) -> object:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def test_every_value_is_changed_by_a_file_that_ci_renders() -> None:
    pools = [pool for values in CI.values() for pool in values.get("pools", [])]
    untried = []
    for path, default in leaves({name: value for name, value in VALUES.items() if name != "pools"}):
        given = [at(values, path) for values in CI.values()]
        given += [at(pool, path[1:]) for pool in pools if path[0] == "poolDefaults"]
        if all(value in (None, default) for value in given):
            untried.append(".".join(path))
    # A map's own entry, which other names stand beside; Valkey's and SeaweedFS's tag, which the digest wins over.
    assert untried == ["images.data.tag", "metrics.dashboard.labels.grafana_dashboard"]


def test_what_is_set_is_found_in_what_is_rendered(render: Render) -> None:
    text = json.dumps(render("every"))
    lost = [
        ".".join(path)
        for path, value in leaves(EVERY)
        if not isinstance(value, bool) and not all(word in text for word in words(value))
    ]
    assert lost == []
    env = find(render("every"), "Deployment", "-worker-default").env
    assert (env["SERINETTE_CPU_OFFLOAD"], env["SERINETTE_COMPILE"]) == ("true", "true")
    assert find(render("every"), "Deployment", "-gateway").env["SERINETTE_GENERATE_MUSIC_WAITS"] == "false"


def words(value: object) -> list[str]:
    """The recognisable parts of a value."""
    if isinstance(value, dict):
        return [word for each in value.values() for word in words(each)]
    if isinstance(value, list):
        return [word for each in value for word in words(each)]
    return [str(value)]


def test_the_pods_own_disk_holds_its_spool(render: Render) -> None:
    worker = find(render("every"), "Deployment", "-worker-default")
    (work,) = (volume for volume in (worker.pod or {})["volumes"] if volume["name"] == "work")
    limit_bytes = int(work["emptyDir"]["sizeLimit"].removesuffix("Mi")) * 1024**2
    assert int(worker.env["SERINETTE_SPOOL_MAX_BYTES"]) == 3 * 1024**3
    assert limit_bytes == 9 * 1024**3, "6 GiB beyond the spool"
    assert worker.env["SERINETTE_WORK_DIR"] == next(
        mount["mountPath"] for mount in worker.container["volumeMounts"] if mount["name"] == "work"
    )
