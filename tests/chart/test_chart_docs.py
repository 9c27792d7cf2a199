"""The values that the docs show, as an operator passes them to helm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from scripts.chart_tools import CHART
from tests.chart.rendering import Render, find

DOCS = CHART.parents[1] / "docs"
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
# Of each page, all blocks that are values of the chart.
BLOCKS = {
    f"{page.stem}-{number}": block
    for page in sorted(DOCS.glob("*.md"))
    for number, block in enumerate(BLOCK.findall(page.read_text()))
    if yaml.safe_load(block).keys() & VALUES.keys()
}
REGISTRY = 'global.imageRegistry="registry.example.com/you"'


@pytest.mark.parametrize("name", BLOCKS)
def test_values_in_the_docs_are_accepted(render: Render, tmp_path: Path, name: str) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(BLOCKS[name])
    assert render(str(path), REGISTRY)


def test_the_recipe_without_internet_is_the_gpu_pool_from_a_store_inside(render: Render, tmp_path: Path) -> None:
    path = tmp_path / "inside.yaml"
    (block,) = (block for block in BLOCKS.values() if "HF_HUB_OFFLINE" in block)
    path.write_text(block)
    worker, usual = (
        find(render(values, REGISTRY), "Deployment", "-worker-turbo") for values in (str(path), "values-gpu")
    )
    assert worker.container["resources"] == usual.container["resources"]
    cache = [volume for volume in (worker.pod or {})["volumes"] if volume["name"] == "checkpoints"]
    assert cache == [volume for volume in (usual.pod or {})["volumes"] if volume["name"] == "checkpoints"]
    mounts = {mount["name"]: mount["mountPath"] for mount in worker.container["volumeMounts"]}
    assert worker.env["SERINETTE_MODEL_CREDENTIALS_DIR"] == mounts["model-store"]
    (secret,) = (volume for volume in (worker.pod or {})["volumes"] if volume["name"] == "model-store")
    assert secret["secret"] == {"secretName": "minio-credentials"}
