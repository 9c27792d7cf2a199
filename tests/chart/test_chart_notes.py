"""The notes after an install: commands that name objects of the release."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.chart_tools import CHART, helm, run
from tests.chart.rendering import Render, find


def notes(*settings: str) -> str:
    """As `helm install` prints them; without KEDA, which a rendering without a cluster does not have."""
    command: list[str | Path] = [helm(), "install", "studio", CHART, "--namespace", "music", "--dry-run=client"]
    command += ["--values", CHART / "ci" / "fixed-values.yaml"]
    return run([*command, *(part for setting in settings for part in ("--set", setting))]).partition("NOTES:")[2]


def test_the_next_commands_name_what_was_made(render: Render) -> None:
    output = notes("auth.enabled=true", "gateway.service.port=80")
    assert "helm test studio -n music --logs --timeout 900s" in output
    assert "exec deploy/studio-serinette-gateway -- python -m serinette.cli keys create me" in output
    assert "port-forward service/studio-serinette-gateway 8019:80 &" in output
    objects = render("fixed", keda=False)
    for kind, named in (("Deployment", "deploy"), ("Service", "service")):
        (name,) = set(re.findall(rf"{named}/(\S+)", output))
        assert find(objects, kind, name.removeprefix("studio-"))


@pytest.mark.parametrize(
    ("ingress", "warned"), [("false", "the gateway may generate songs"), ("true", "through the Ingress too")]
)
def test_without_keys_it_warns_that_all_clients_may_generate(ingress: str, warned: str) -> None:
    output = notes("auth.enabled=false", f"gateway.ingress.enabled={ingress}")
    assert warned in output and "keys create" not in output and "Authorization" not in output
