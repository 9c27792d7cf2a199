"""The controller killed before every round trip to Redis, store and API server while it runs a container."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from controller.settings import ControllerSettings
from serinette.job import JobStatus
from tests import servers
from tests.kills.deaths import Deaths, Fate
from tests.kube import kubernetes_api
from tests.unit.container_bench import ON, ContainerBench, duty, terminated
from tests.unit.test_store import s3_settings


def rounds(fate: Fate, settings: ControllerSettings, redis_url: str, kubeconfig: Path, times: int) -> None:
    controller = duty(settings, fate.redis(redis_url), kubeconfig, fate.step)
    for _ in range(times):
        controller()


@pytest.mark.timeout(900)  # every death is a process
@pytest.mark.parametrize("ended", [False, True])
def test_every_death_leaves_one_job_and_one_end(
    redis: Redis, redis_url: str, s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    shared = s3_settings(s3, monkeypatch, tmp_path.name)
    where = {"store_url": shared.store_url, "store_endpoint": s3.endpoint, "store_public_endpoint": s3.endpoint}
    settings = ControllerSettings.model_validate({"redis_url": redis_url, **where, **ON, "containers_output_files": 1})
    deaths = Deaths(fewest=10)
    with kubernetes_api() as kube:
        bench = ContainerBench(redis, kube, settings, kube.kubeconfig(tmp_path))
        for round_trips in deaths:
            job_id = bench.submit()
            if ended:
                bench.round(2)
                bench.put_output(job_id, "a.bin", b"a")
                bench.pod(job_id, "Succeeded", terminated(0))
                bench.log(job_id, "2026-01-01T00:00:00.000000001Z one\n")
            deaths.lives(round_trips, rounds, settings, redis_url, bench.kubeconfig, 2)
            if not ended:
                bench.round(2)
                assert bench.created(job_id) == 1, f"killed before round trip {round_trips}: no double"
                bench.put_output(job_id, "a.bin", b"a")
                bench.pod(job_id, "Succeeded", terminated(0))
                bench.log(job_id, "2026-01-01T00:00:00.000000001Z one\n")
            bench.round(2)
            run = bench.assert_over(job_id, JobStatus.SUCCEEDED).run
            assert run and [each.name for each in run.outputs] == ["a.bin"]
            assert bench.store.get(str(run.log_key)) == b"one\n"
            assert bench.created(job_id) == 1
            bench.no_pod(job_id)
