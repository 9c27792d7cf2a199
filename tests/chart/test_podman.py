"""CI does not spend its time on images that no earlier run has built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chart.podman import ASKED, BASE, Podman, may_start_from_nothing


@pytest.mark.parametrize(
    ("environment", "may"),
    [
        ({}, True),
        ({"CI": ""}, True),
        ({"CI": "true"}, False),
        ({"CI": "true", ASKED: "0"}, False),
        ({"CI": "true", ASKED: "1"}, True),
    ],
)
def test_which_runs_may_build_images_from_scratch(environment: dict[str, str], may: bool) -> None:
    assert may_start_from_nothing(environment) is may


@pytest.mark.parametrize(
    ("has_base", "step"),
    [(False, Podman.require), (True, lambda podman: podman.build("api/Dockerfile", "localhost/none:0"))],
)
def test_an_empty_store_stays_empty_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_base: bool, step: Callable[[Podman], object]
) -> None:
    calls = tmp_path / "calls"
    present = BASE if has_base else "nothing"
    stand_in = f'#!/bin/sh\necho "$@" >> {calls}\n[ "$1 $2" != "image exists" ] || [ "$3" = {present} ]\n'
    (tmp_path / "podman").write_text(stand_in)
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CI", "true")
    monkeypatch.delenv(ASKED, raising=False)
    with pytest.raises(pytest.skip.Exception, match=ASKED):
        step(Podman(tmp_path))
    assert [line for line in calls.read_text().splitlines() if not line.startswith("image exists")] == []
