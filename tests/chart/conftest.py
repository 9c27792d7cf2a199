"""The chart rendered by the real helm, once for each set of values."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest

from scripts.chart_tools import CHART, CommandFailed, ToolMissing, helm, template_command
from tests.chart.rendering import Manifest, Render, manifests

CI = CHART / "ci"


@pytest.fixture(scope="session")
def render() -> Render:
    """`render("gpu", 'pools[0].max=3')`: the objects of a ci/ values file (or one's path) and --set-json settings."""
    try:
        helm()
    except (CommandFailed, ToolMissing, OSError) as error:
        pytest.skip(f"helm is not here and cannot be fetched: {str(error)[-300:]}")

    @cache
    def rendered(values: str = "default", *settings: str, keda: bool = True) -> tuple[Manifest, ...]:
        command = template_command([_path(values)], settings, keda=keda)
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise CommandFailed(done.stderr)
        return manifests(done.stdout)

    return rendered


def _path(values: str) -> Path:
    if values == "values-gpu":
        return CHART / "values-gpu.yaml"
    return Path(values) if values.endswith(".yaml") else CI / f"{values}-values.yaml"
