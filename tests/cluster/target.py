"""Which cluster may be tested on, and with which images: decided before anything is asked of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXTS = "SERINETTE_TEST_CONTEXTS"
REGISTRY = "SERINETTE_TEST_REGISTRY"
MAY_STOP = "SERINETTE_TEST_MAY_STOP_KEDA"
OLD_CHART = "SERINETTE_TEST_OLD_CHART"

# As a node reports it.
_GATEWAY = re.compile(r"(\S+)/serinette-gateway:([\w.-]+)")


class NotHere(Exception):
    """Why the suite cannot run; the reason that it skips with."""


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster that may be tested on."""

    context: str
    registry: str
    values: tuple[Path, ...] = ()  # more values for every release: tags, pull secrets, a storage class
    keda_namespace: str = "keda"
    may_stop_keda: bool = False
    old_chart: Path | None = None  # of 01f4adc, with two records per job
    old_values: tuple[Path, ...] = ()  # its images
    may_change_nodes: bool = False
    tag: str = ""  # of our images; empty: the chart's appVersion

    def helm_values(self, own: Mapping[str, Any]) -> str:
        """The values of a release, as JSON, which is YAML."""
        values = {**own, "global": {"imageRegistry": self.registry, **own.get("global", {})}}
        if self.tag:
            values["images"] = {name: {"tag": self.tag} for name in ("gateway", "worker", "data")}
        return json.dumps(values).replace("REGISTRY", self.registry)


def target_of(
    environment: Mapping[str, str], current_context: str | None, images: Callable[[], Iterable[str]]
) -> Target:
    """The cluster that KUBECONFIG names, within what the environment allows. `images`: names of those on its nodes.

    Raises NotHere, saying what to set.
    """
    if current_context is None:
        raise NotHere("no cluster: set KUBECONFIG")
    allowed = [name.strip() for name in environment.get(CONTEXTS, "").split(",") if name.strip()]
    if allowed and current_context not in allowed:
        raise NotHere(
            f"no cluster: the current context is {current_context!r}, and {CONTEXTS} allows {', '.join(allowed)}; name "
            "there the contexts that may be tested on"
        )
    registry, tag = environment.get(REGISTRY, ""), ""
    if not registry:
        found = [match for name in images() if (match := _GATEWAY.fullmatch(name))]
        if not found:
            raise NotHere(f"no cluster: its nodes have no image of ours; set {REGISTRY} to where they find them")
        registry, tag = found[0].groups()
    return Target(
        current_context,
        registry,
        tuple(Path(name) for name in environment.get("SERINETTE_TEST_VALUES", "").split(":") if name),
        environment.get("SERINETTE_TEST_KEDA_NAMESPACE", "keda"),
        environment.get(MAY_STOP) == "1",
        Path(environment[OLD_CHART]) if environment.get(OLD_CHART) else None,
        tuple(Path(name) for name in environment.get("SERINETTE_TEST_OLD_VALUES", "").split(":") if name),
        may_change_nodes=bool(allowed),
        tag=tag,
    )


# Every release's own: small, quick to scale, gone with its namespace. Keys are asked for in tests of their own.
BASE: dict[str, Any] = {
    "auth": {"enabled": False},
    "cluster": {"readNodes": True, "protect": True},
    "gateway": {"replicas": 1, "jobTimeoutS": 1200, "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}}},
    "controller": {"replicas": 1},
    "valkey": {"persistence": {"size": "1Gi", "onUninstall": "Delete"}},
    "seaweedfs": {"persistence": {"size": "1Gi", "onUninstall": "Delete"}},
    "poolDefaults": {
        "terminationGraceS": 1260,
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}},
        "scaling": {"pollingIntervalS": 2, "cooldownS": 15, "downStabilizationS": 15},
    },
    "pools": [{"name": "default", "max": 2, "jobsPerWorker": 1}],
}
GPU = "nvidia.com/gpu"

# Of our own images, so that its nodes have them; none waits longer than it has to.
CONTAINERS: dict[str, Any] = {"enabled": True, "images": ["REGISTRY/"], "graceS": 30}

# What each test says beyond BASE; CI renders each of them (tests/chart/test_cluster_values.py).
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch": {"pools": [{"name": "default", "max": 3, "slots": 8, "maxBatch": 8, "jobsPerWorker": 8}]},
    "upgraded": {
        "settings": {"retentionS": 7200},
        "pools": [{"name": "default", "max": 2, "jobsPerWorker": 1, "threads": 1}],
    },
    # Times that a cold start, KEDA's polls and deletes fall into one another.
    "restless": {
        "settings": {"heartbeatS": 2, "heartbeatTtlS": 8},
        "pools": [{"name": "default", "max": 3, "jobsPerWorker": 1}],
    },
    "at-min": {"keda": {"startAtMin": True}},
    "at-min-upgraded": {"keda": {"startAtMin": True}, "settings": {"retentionS": 7200}},
    "shared": {"networkPolicy": {"enabled": False}},
    "guest": {
        "valkey": {"enabled": False},
        "redis": {
            "host": "one-serinette-valkey.NAMESPACE.svc",
            "prefix": "guest",
            "auth": {"existingSecret": "one-serinette-valkey"},
        },
        "networkPolicy": {"enabled": False},
    },
    "containers": {"containers": CONTAINERS},
    "impatient": {"containers": {**CONTAINERS, "startS": 30}},
    "gpu": {
        "pools": [{"name": "default", "min": 2, "max": 2, "gpu": {"resource": GPU, "count": 1}, "device": "cpu"}],
    },
}


def values_of(scenario: str, namespace: str) -> dict[str, Any]:
    """The values of a scenario in a namespace."""
    merged = {**BASE, **SCENARIOS[scenario]}
    found: dict[str, Any] = json.loads(json.dumps(merged).replace("NAMESPACE", namespace))
    return found


def advertised(resource: str, count: int | None) -> str:
    """A JSON patch of a node's status that has it offer so many of a device that it has not; None: no more."""
    path = "/status/capacity/" + resource.replace("/", "~1")
    if count is None:
        return json.dumps([{"op": "remove", "path": path}])
    return json.dumps([{"op": "add", "path": path, "value": str(count)}])
