"""The API server that tests use, seen through the real client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.client.rest import ApiException

from tests.kube import Kube, kubernetes_api


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": {"containers": []}}


@pytest.fixture
def kube() -> Iterator[Kube]:
    with kubernetes_api(pod("one", pool="a"), pod("two", pool="b")) as running:
        yield running


@pytest.fixture
def api(kube: Kube, tmp_path: Path) -> Iterator[client.ApiClient]:
    made: client.ApiClient = config.new_client_from_config(str(kube.kubeconfig(tmp_path)))
    with made:
        yield made


def test_lists_and_selectors(api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    assert {found.metadata.name for found in core.list_namespaced_pod("default").items} == {"one", "two"}
    selected = core.list_pod_for_all_namespaces(label_selector="pool=b,!spot", field_selector="metadata.name!=one")
    assert [found.metadata.name for found in selected.items] == ["two"]
    assert not core.list_namespaced_pod("elsewhere").items
    assert client.VersionApi(api).get_code().git_version == "v1.36.0"


def test_a_patch_is_recorded_and_kept(kube: Kube, api: client.ApiClient) -> None:
    note = {"metadata": {"annotations": {"cost": "5"}}}
    patched = client.CoreV1Api(api).patch_namespaced_pod("one", "default", note)
    assert patched.metadata.annotations == {"cost": "5"}
    assert [(asked.path, asked.body) for asked in kube.patches] == [("/api/v1/namespaces/default/pods/one", note)]
    kept = kube.get("v1", "Pod", "one", "default")
    assert kept and kept["metadata"]["labels"] == {"pool": "a"}


def test_what_is_not_there_and_what_is_broken(kube: Kube, api: client.ApiClient) -> None:
    core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
    with pytest.raises(ApiException, match="404"):
        core.read_namespaced_pod("three", "default")
    with pytest.raises(ApiException, match="404"):
        custom.list_namespaced_custom_object("keda.sh", "v1alpha1", "default", "scaledobjects")
    kube.fail("/pods", 403, "no", times=1)
    with pytest.raises(ApiException, match="403"):
        core.list_namespaced_pod("default")
    assert len(core.list_namespaced_pod("default").items) == 2


def test_create_replace_delete(kube: Kube, api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_pod("default", pod("three"))
    with pytest.raises(ApiException, match="409"):
        core.create_namespaced_pod("default", pod("three"))
    core.delete_namespaced_pod("three", "default")
    assert kube.get("v1", "Pod", "three", "default") is None
