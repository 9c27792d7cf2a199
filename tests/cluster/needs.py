"""What a test needs beyond a cluster with KEDA and our images: `@needs(...)`. Without it the test skips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from tests.cluster.target import CONTEXTS, GPU, MAY_STOP, OLD_CHART, Target

needs = pytest.mark.needs

MAY_STOP_KEDA = "may stop KEDA"
MAY_CHANGE_NODES = "may change nodes"
NO_GPU = "no GPU"
ENFORCED_POLICIES = "NetworkPolicies that are enforced"
OLD_VERSION = "chart and images of 01f4adc"
PID_LIMIT = "the kubelet's podPidsLimit"

Nodes = Sequence[Mapping[str, Any]]
# Why a target does not have it; empty when it does. What only the test itself can find out is never missing here.
_MISSING: Mapping[str, Callable[[Target, Nodes], str]] = {
    MAY_STOP_KEDA: lambda target, _: "" if target.may_stop_keda else f"stops the cluster's KEDA: set {MAY_STOP}=1",
    MAY_CHANGE_NODES: lambda target, _: (
        "" if target.may_change_nodes else f"drains or changes a node: name the context in {CONTEXTS}"
    ),
    NO_GPU: lambda _, nodes: ", ".join(
        f"{node['metadata']['name']} has GPUs of its own" for node in nodes if GPU in node["status"]["allocatable"]
    ),
    OLD_VERSION: lambda target, _: "" if target.old_chart else f"needs a chart of 01f4adc: {OLD_CHART}",
    ENFORCED_POLICIES: lambda _target, _nodes: "",
    PID_LIMIT: lambda target, _: "" if target.may_change_nodes else f"a fork bomb: name the context in {CONTEXTS}",
}
ALL = frozenset(_MISSING)


def missing(wanted: Sequence[str], target: Target, nodes: Nodes) -> str:
    """Why a test cannot run here; empty when it can. A need that is not known is a KeyError."""
    return "; ".join(filter(None, (_MISSING[each](target, nodes) for each in wanted)))
