"""What the controller may do in the cluster: what it needs, and nothing more. The policy is run by a CEL of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from celpy.adapter import json_to_cel

from controller.autoscaling import MARKS
from controller.pod_explanations import POOL_LABEL
from tests.chart.policies import denied, evaluated
from tests.chart.rendering import Manifest, Render, find, of_kind

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
ACCOUNT = {"kind": "ServiceAccount", "name": "serinette-controller", "namespace": "serinette"}
USER = "system:serviceaccount:serinette:serinette-controller"
NAMED = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "ValidatingAdmissionPolicy")

CLUSTER_WIDE = ("cluster.readNodes=true", "cluster.protect=true")
LISTED = {("pods", "list"), ("events", "list"), ("scaledobjects", "list")}


def rules(objects: tuple[Manifest, ...]) -> set[tuple[str, str]]:
    """Resources and verbs of all roles."""
    found = [*of_kind(objects, "Role"), *of_kind(objects, "ClusterRole")]
    granted = [rule for role in found for rule in role["rules"]]
    assert all((rule["apiGroups"] == ["keda.sh"]) is (rule["resources"] == ["scaledobjects"]) for rule in granted)
    return {(resource, verb) for rule in granted for resource in rule["resources"] for verb in rule["verbs"]}


@pytest.mark.parametrize(
    ("settings", "granted"),
    [
        ((), LISTED),
        (("keda.enabled=false",), LISTED - {("scaledobjects", "list")}),
        (("cluster.readNodes=true",), LISTED | {("nodes", "list")}),
        (("cluster.protect=true",), LISTED | {("pods", "patch")}),
        (("cluster.explain=false",), set()),
    ],
)
def test_roles_grant_what_is_used_to_the_controller_alone(
    render: Render, settings: tuple[str, ...], granted: set[tuple[str, str]]
) -> None:
    objects = render("default", *settings)
    assert rules(objects) == granted
    for binding in [*of_kind(objects, "RoleBinding"), *of_kind(objects, "ClusterRoleBinding")]:
        assert binding["subjects"] == [ACCOUNT]
        assert find(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])
    assert len(of_kind(objects, "ValidatingAdmissionPolicy")) == (("pods", "patch") in granted)
    assert len(of_kind(objects, "ValidatingAdmissionPolicyBinding")) == (("pods", "patch") in granted)


def test_no_other_part_has_a_token(render: Render) -> None:
    with_token = [item.name for item in render("gpu") if item.pod and TOKEN in str(item.pod)]
    assert with_token == ["serinette-controller"]
    assert not [item for item in render("gpu", "cluster.explain=false") if TOKEN in str(item)]
    assert all(item.pod["automountServiceAccountToken"] is False for item in render("gpu") if item.pod)


def test_it_looks_at_the_pods_that_the_chart_makes(render: Render) -> None:
    objects = render("gpu")
    env = find(objects, "Deployment", "-controller").env
    assert env["SERINETTE_CLUSTER_NAMESPACE"] == "serinette"
    wanted = dict(term.split("=") for term in env["SERINETTE_CLUSTER_SELECTOR"].split(","))
    assert wanted["app.kubernetes.io/name"] == "serinette", "other charts have workers, too"
    for item in of_kind(objects, "Deployment"):
        labels = item["spec"]["template"]["metadata"]["labels"]
        assert (wanted.items() <= labels.items()) == ("-worker-" in item.name)
        assert (POOL_LABEL in labels) == ("-worker-" in item.name)
        if "-worker-" in item.name:
            assert item.name == env["SERINETTE_CLUSTER_DEPLOYMENTS"] + labels[POOL_LABEL]


def test_by_default_nothing_is_the_whole_clusters(render: Render) -> None:
    for values in ("default", "gpu", "external", "k8s"):
        kinds = {item.kind for item in render(values)}
        assert not {kind for kind in kinds if kind.startswith(("Cluster", "Validating", "PriorityClass"))}, values


def test_two_releases_do_not_share_what_is_the_clusters(render: Render) -> None:
    objects = render("default", *CLUSTER_WIDE)
    clustered = [item for kind in NAMED for item in of_kind(objects, kind) if "Cluster" in kind or "Policy" in kind]
    assert {item.name for item in clustered} == {"serinette-serinette-controller"}  # namespace and release


POD: dict[str, Any] = {
    "metadata": {
        "name": "w-1",
        "labels": {
            "app.kubernetes.io/name": "serinette",
            "app.kubernetes.io/instance": "serinette",
            "app.kubernetes.io/component": "worker",
        },
        "annotations": {"theirs": "x"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "w"}],
    },
    "spec": {"containers": [{"name": "worker", "image": "a/b:1"}]},
}


def annotated(**annotations: str) -> Callable[[dict[str, Any]], None]:
    return lambda pod: pod["metadata"].update(annotations=annotations)


def marked(pod: dict[str, Any]) -> None:
    pod["metadata"]["annotations"] |= MARKS


def bare(pod: dict[str, Any]) -> None:
    del pod["metadata"]["annotations"]


def another_image(pod: dict[str, Any]) -> None:
    pod["spec"]["containers"][0]["image"] = "evil:1"


def another_pool(pod: dict[str, Any]) -> None:
    pod["metadata"]["labels"]["serinette.dev/pool"] = "other"


def a_finalizer(pod: dict[str, Any]) -> None:
    pod["metadata"]["finalizers"] = ["stay/for-ever"]


def an_orphan(pod: dict[str, Any]) -> None:
    del pod["metadata"]["ownerReferences"]


def nothing(_: dict[str, Any]) -> None:
    """As it was."""


def of_another_release(pod: dict[str, Any]) -> None:
    pod["metadata"]["labels"]["app.kubernetes.io/instance"] = "other"


def of_the_gateway(pod: dict[str, Any]) -> None:
    pod["metadata"]["labels"]["app.kubernetes.io/component"] = "gateway"


def of_another_chart(pod: dict[str, Any]) -> None:
    """Of the same umbrella chart, whose release is the instance of all."""
    pod["metadata"]["labels"]["app.kubernetes.io/name"] = "authentik"


def unlabeled(pod: dict[str, Any]) -> None:
    del pod["metadata"]["labels"]


@pytest.mark.parametrize(
    ("before", "change", "refused"),
    [
        (nothing, marked, None),
        (marked, nothing, None),
        (bare, annotated(**{next(iter(MARKS)): "100"}), None),
        (marked, annotated(theirs="x"), None),  # idle again
        (nothing, annotated(theirs="y"), "only the three annotations"),
        (nothing, annotated(theirs="x", more="z"), "only the three annotations"),
        (nothing, bare, "only the three annotations"),
        (nothing, another_image, "only annotations of a pod"),
        (nothing, another_pool, "only annotations of a pod"),
        (nothing, a_finalizer, "only annotations of a pod"),
        (nothing, an_orphan, "only annotations of a pod"),
        (of_another_release, marked, "only worker pods of its own release"),
        (of_the_gateway, marked, "only worker pods of its own release"),
        (of_another_chart, marked, "only worker pods of its own release"),
        (unlabeled, marked, "only worker pods of its own release"),
    ],
)
def test_the_policy_lets_marks_pass_and_nothing_else(
    render: Render,
    before: Callable[[dict[str, Any]], None],
    change: Callable[[dict[str, Any]], None],
    refused: str | None,
) -> None:
    (policy,) = of_kind(render("default", *CLUSTER_WIDE), "ValidatingAdmissionPolicy")
    old = copy.deepcopy(POD)
    before(old)
    new = copy.deepcopy(old)
    change(new)
    messages = denied(policy["spec"], USER, new, old)
    assert messages[:1] == [] if refused is None else any(refused in message for message in messages)


def test_the_policy_binds_only_the_controller_in_its_own_namespace(render: Render) -> None:
    objects = render("default", *CLUSTER_WIDE)
    (policy,) = of_kind(objects, "ValidatingAdmissionPolicy")
    (condition,) = policy["spec"]["matchConditions"]
    for user, meant in ((USER, True), ("system:node:a", False)):
        given = {"request": json_to_cel({"userInfo": {"username": user}})}
        assert bool(evaluated(condition["expression"], given)) is meant
    (binding,) = of_kind(objects, "ValidatingAdmissionPolicyBinding")
    assert binding["spec"]["validationActions"] == ["Deny"]
    assert binding["spec"]["policyName"] == policy.name
    selector = binding["spec"]["matchResources"]["namespaceSelector"]
    assert selector == {"matchLabels": {"kubernetes.io/metadata.name": "serinette"}}
