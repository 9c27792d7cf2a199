"""Which pool a job goes to, and how long it may run there, by what is published of the pools."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
from pydantic import ValidationError

from api.queue.admission import check_length, check_lora_and_codes, pool_for, timeout_for
from api.settings import GatewaySettings
from controller.settings import ControllerSettings
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError, InvalidSpec
from serinette.job import now
from serinette.pools import PoolFacts, published_name, serving
from serinette.presence import Presence, WorkerStage
from serinette.settings import SharedSettings, read
from serinette.spec import GenerationSpec
from tests.unit.queue_harness import model

TURBO = PoolFacts(name="turbo", model="s3://models/turbo", longest_s=540)
BASE = PoolFacts(name="base", model="ACE-Step/base@v1", slots=4, max_workers=3)
SPARE = PoolFacts(name="spare", model="/models/other", model_name="turbo")


def settings(*pools: PoolFacts, **given: object) -> GatewaySettings:
    return GatewaySettings.model_validate({"pools": pools, "pool": "base", **given})


def worker(pool: str, name: str) -> Presence:
    return Presence(name="w", pool=pool, stage=WorkerStage.READY, slots=1, model=model(name), started_at=now())


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("bundled", "bundled"),
        ("ACE-Step/acestep-v15-turbo", "acestep-v15-turbo"),
        ("ACE-Step/acestep-v15-turbo@1a2b", "acestep-v15-turbo"),
        ("s3://models/of/turbo/", "turbo"),
        ("/models", "models"),
        ("file:///srv/models/base", "base"),
    ],
)
def test_a_model_is_published_under_the_end_of_its_checkpoints_name(checkpoint: str, name: str) -> None:
    assert published_name(checkpoint) == name


@pytest.mark.parametrize(
    ("asked", "default", "pool"),
    [("turbo", "base", "turbo"), ("turbo", "spare", "spare"), ("base", "turbo", "base"), ("none", "base", None)],
)
def test_of_pools_with_one_model_the_default_goes_first(asked: str, default: str, pool: str | None) -> None:
    assert serving((TURBO, BASE, SPARE), asked, default) == pool


@pytest.mark.parametrize(
    ("published", "workers", "asked", "pool"),
    [
        ((TURBO, BASE), [], None, "base"),
        ((TURBO, BASE), [], "turbo", "turbo"),  # at zero
        ((TURBO, BASE), [worker("gone", "old")], "turbo", "turbo"),
        ((), [worker("turbo", "big")], "big", "turbo"),  # no chart
        ((), [], None, "base"),
    ],
)
def test_a_job_goes_to_the_pool_of_its_model(
    published: Sequence[PoolFacts], workers: list[Presence], asked: str | None, pool: str
) -> None:
    assert pool_for(asked, settings(*published), workers) == pool


@pytest.mark.parametrize(
    ("published", "workers", "words"),
    [
        ((TURBO, BASE), [worker("gone", "old")], "old is not known; published here are base, turbo"),
        ((), [worker("turbo", "big")], "old is not known; published here are big"),
        ((), [], "old is not known; no worker is up"),
    ],
)
def test_a_model_that_no_pool_holds_is_refused(
    published: Sequence[PoolFacts], workers: list[Presence], words: str
) -> None:
    with pytest.raises(InvalidSpec, match=words) as refusal:
        pool_for("old", settings(*published), workers)
    assert refusal.value.field == "model"


@pytest.mark.parametrize(
    ("asked_s", "pool", "runs_s"),
    [(None, "base", 1800), (None, "turbo", 540), (540, "turbo", 540), (7200, "base", 7200), (7200, "unknown", 7200)],
)
def test_a_job_may_run_as_long_as_its_pool_allows(asked_s: int | None, pool: str, runs_s: int) -> None:
    assert timeout_for(asked_s, pool, settings(TURBO, BASE)) == runs_s


def test_a_timeout_beyond_the_pools_grace_is_refused_with_the_longest() -> None:
    with pytest.raises(InvalidSpec, match="pool turbo lets a job run for 540 s at most") as refusal:
        timeout_for(541, "turbo", settings(TURBO, BASE))
    assert refusal.value.field == "timeout_s"


def test_pools_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINETTE_POOLS", '[{"name": "turbo", "max_workers": 3, "slots": 4, "of_a_newer_chart": 1}]')
    (pool,) = read(GatewaySettings).pools
    assert (pool.published, pool.max_workers * pool.slots, pool.longest_s) == ("bundled", 12, None)
    monkeypatch.setenv("SERINETTE_POOLS", '[{"name": "turbo"}, {"name": "turbo"}]')
    with pytest.raises(ConfigurationError, match="turbo: listed twice"):
        read(GatewaySettings)
    with pytest.raises(ValidationError):
        PoolFacts(name="Not A Name")


@pytest.mark.parametrize(
    ("process", "variable", "value"),
    [
        (GatewaySettings, "SERINETTE_POOLS", '[{"name": "containers"}]'),
        (GatewaySettings, "SERINETTE_POOL", "containers"),
        (ControllerSettings, "SERINETTE_POOL", "containers"),
        (WorkerSettings, "SERINETTE_POOL", "containers"),
    ],
)
def test_no_pool_takes_the_lanes_of_containers(
    monkeypatch: pytest.MonkeyPatch, process: type[SharedSettings], variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=r"no pool may be called containers.*take another name"):
        read(process)


@pytest.mark.parametrize(
    ("asked", "limits", "fits"),
    [
        ({"duration_s": 600}, (600,), True),
        ({"duration_s": 600}, (476,), False),
        ({"duration_s": 476}, (476,), True),
        ({"duration_s": 600}, (476, 600), True),  # the larger card takes it
        ({"duration_s": 600}, (), True),  # no worker is up
        ({"duration_s": 60}, (16,), True),
        ({"duration_s": 600, "task": "cover", "source_audio": "upload"}, (476,), True),  # as long as its source
    ],
)
def test_a_song_is_no_longer_than_the_workers_memory_allows(
    asked: dict[str, object], limits: tuple[float, ...], fits: bool
) -> None:
    up = [worker("base", "m") for _ in limits]
    up = [
        each.model_copy(update={"model": model("m").model_copy(update={"max_duration_s": limit})})
        for each, limit in zip(up, limits, strict=True)
    ]
    elsewhere = worker("other", "m")
    with nullcontext() if fits else pytest.raises(InvalidSpec, match="duration_s: m generates 476 s at most"):
        check_length(GenerationSpec.model_validate(asked), "base", [*up, elsewhere])


def test_a_lora_is_one_that_the_operator_published() -> None:
    check_lora_and_codes(GenerationSpec(lora="choir"), {"choir", "brass"})
    with pytest.raises(InvalidSpec, match="published here are brass, choir"):
        check_lora_and_codes(GenerationSpec(lora="strings"), {"choir", "brass"})
