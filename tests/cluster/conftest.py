"""A namespace and a release for each test; only the cluster of KUBECONFIG is asked."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kubernetes import config
from kubernetes.config.config_exception import ConfigException

from scripts.chart_tools import CommandFailed as ToolFailed
from scripts.chart_tools import ToolMissing, helm, kubectl
from tests.cluster.needs import missing
from tests.cluster.release import CommandFailed, Release, run
from tests.cluster.target import CONTEXTS, NotHere, Target, target_of

DUMPS = Path("build/cluster")


def _current_context() -> str | None:
    if not (path := os.environ.get("KUBECONFIG")):  # ~/.kube/config is not used: it may be a production cluster
        return None
    try:
        return str(config.list_kube_config_contexts(path)[1]["name"])
    except (ConfigException, OSError, KeyError, TypeError):
        return None


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Target:
    """The cluster, or a skip that says what to set."""
    if "cluster" not in pytestconfig.getoption("markexpr") and not os.environ.get(CONTEXTS):
        pytest.skip("no cluster is touched unless it is asked for: pytest -m cluster")
    context = _current_context()

    def images() -> list[str]:
        nodes = json.loads(run([kubectl(), "--context", str(context), "get", "nodes", "--output", "json"]))["items"]
        return [name for node in nodes for image in node["status"].get("images", []) for name in image.get("names", [])]

    try:
        found = target_of(os.environ, context, images)
    except NotHere as error:
        pytest.skip(str(error))
    try:
        helm()
    except (ToolFailed, ToolMissing, OSError) as error:
        pytest.skip(f"helm is not here and cannot be fetched: {str(error)[-300:]}")
    kinds = run([kubectl(), "--context", found.context, "api-resources", "--api-group", "keda.sh", "--output", "name"])
    if "scaledobjects" not in kinds:
        pytest.skip("the cluster has no KEDA")
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's namespace is dumped before it is taken away."""
    report = yield
    release: Release | None = getattr(item, "funcargs", {}).get("release")
    if report.failed and release is not None:
        directory = DUMPS / item.name
        release.dump(directory)
        report.sections.append(("dump of the namespace", str(directory.absolute())))
    return report


@pytest.fixture(autouse=True)
def _has_what_it_needs(request: pytest.FixtureRequest, target: Target) -> None:
    marker = request.node.get_closest_marker("needs")
    if marker is None:
        return
    answer = run([kubectl(), "--context", target.context, "get", "nodes", "--output", "json"])
    if why := missing(marker.args, target, json.loads(answer)["items"]):
        pytest.skip(why)


@contextmanager
def a_namespace(target: Target) -> Iterator[str]:
    """One of its own; gone after it."""
    name = f"serinette-test-{secrets.token_hex(3)}"
    base: list[str | Path] = [kubectl(), "--context", target.context]
    run([*base, "create", "namespace", name])
    try:
        yield name
    finally:
        run([*base, "delete", "namespace", name, "--wait=false"])


@contextmanager
def a_release(target: Target, namespace: str) -> Iterator[Release]:
    """One that is not installed yet; uninstalled after it."""
    made = Release(target, namespace)
    try:
        yield made
    finally:
        try:
            made.uninstall()
        except (CommandFailed, subprocess.TimeoutExpired) as error:
            print(f"uninstall: {error}")


@pytest.fixture
def namespace(target: Target) -> Iterator[str]:
    """One of this test's own."""
    with a_namespace(target) as name:
        yield name


@pytest.fixture
def release(target: Target, namespace: str) -> Iterator[Release]:
    """A release that the test installs."""
    with a_release(target, namespace) as made:
        yield made
