"""What `make release` asks of podman or docker."""

from __future__ import annotations

import re

import pytest
import yaml

from scripts.chart_tools import CHART, ROOT
from scripts.release import IMAGES, arguments, build_command
from serinette import __version__


def test_every_image_of_the_chart_is_built_under_the_name_that_it_pulls() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["images"]
    assert {image.name for image in IMAGES} == values.keys() - {"pullPolicy"}
    for image in IMAGES:
        assert image.tag("host/you") == f"host/you/{values[image.name]['repository']}:{__version__}"
        text = (ROOT / image.dockerfile).read_text()
        assert image.target is None or re.search(rf"^FROM \S+ AS {image.target}$", text, re.MULTILINE)


def test_the_operators_own_arguments_reach_the_builder() -> None:
    asked = arguments(["host/you", "--no-push", "--", "--build-arg", "TORCH=torch"])
    assert (asked.registry, asked.no_push, asked.plain_http) == ("host/you", True, False)
    command = build_command("docker", IMAGES[0], asked.registry, "abc", asked.build)
    assert command[:2] == ["docker", "build"] and command[-1] == "."
    assert command[command.index("--build-arg") + 1] == "TORCH=torch"
    assert "org.opencontainers.image.revision=abc" in command


def test_a_registry_must_be_named() -> None:
    with pytest.raises(SystemExit):
        arguments([])


@pytest.mark.parametrize("dockerfile", sorted({image.dockerfile for image in IMAGES}))
def test_images_run_unprivileged_by_numeric_uid(dockerfile: str) -> None:
    text = (ROOT / dockerfile).read_text()
    stages = [stage for stage in re.split(r"^(?=FROM )", text, flags=re.MULTILINE) if "CMD [" in stage]
    assert stages and all("\nUSER 10001:10001\n" in stage for stage in stages)
    assert re.search(r"^ARG PYTHON_IMAGE=\S+:\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE), "the base is pinned"
