"""An upgrade: values of an earlier chart are taken, and nothing is changed that Kubernetes would refuse to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.chart_tools import run, template_command
from tests.chart.rendering import Manifest, Render, find, manifests

RELEASED = Path(__file__).parent / "released"
VERSIONS = sorted(path.name.removesuffix("-values.yaml") for path in RELEASED.glob("*-values.yaml"))


def upgraded(version: str) -> tuple[Manifest, ...]:
    """What this chart makes of an earlier one's values."""
    return manifests(run(template_command([RELEASED / f"{version}-values.yaml"])))


def kept(item: Manifest, names: set[str]) -> dict[str, Any]:
    if item.kind == "Secret":
        return {"keys": sorted(item["data"])}
    return {name: value for name, value in item.get("spec", {}).items() if name in names}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_earlier_charts_values_make_objects_that_can_be_applied(render: Render, version: str) -> None:
    objects = upgraded(version)
    for before in yaml.safe_load((RELEASED / f"{version}-objects.yaml").read_text()):
        fixed = {name: value for name, value in before.items() if name not in ("kind", "name")}
        now = find(objects, before["kind"], before["name"])
        assert kept(now, set(fixed)) == fixed, f"{before['kind']} {before['name']}"


@pytest.mark.parametrize("values", ["default", "gpu", "external"])
def test_what_can_never_be_changed_depends_on_no_setting(render: Render, values: str) -> None:
    """Labels of one's own stay out of selectors: a selector that changes makes the upgrade fail."""
    for item in render(values, 'commonLabels={"team": "other"}'):
        if item.kind in ("Deployment", "StatefulSet"):
            assert "team" not in item["spec"]["selector"]["matchLabels"]
            for claim in item["spec"].get("volumeClaimTemplates", []):
                assert "labels" not in claim["metadata"], "a label that changes could not be applied"
