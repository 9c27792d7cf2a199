"""The controller as it is run, beside a cluster: what it reports to gateways and KEDA."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from redis import Redis

from serinette.brake import PROBE, load_failed
from serinette.leash import leashed
from serinette.names import Keys, Lane
from serinette.presence import parse_holdups
from tests.kube import kubernetes_api
from tests.processes import eventually

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "w-1",
        "labels": {
            "app.kubernetes.io/name": "serinette",
            "app.kubernetes.io/component": "worker",
            "serinette.dev/pool": "turbo",
        },
    },
    "status": {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            }
        ],
    },
}


def test_it_reports_what_holds_up_a_pool_marks_busy_pods_and_pulls_the_brake(
    redis: Redis, redis_url: str, keys: Keys, file_store_url: str, tmp_path: Path
) -> None:
    with kubernetes_api() as kube, (tmp_path / "log").open("wb") as log:
        kube.add(POD, namespace="music")
        settings = {
            "redis_url": redis_url,
            "store_url": file_store_url,
            "pools": json.dumps([{"name": "turbo", "gpu_resource": "nvidia.com/gpu"}]),
            "interval_s": 0.2,
            "cluster_namespace": "music",
            "cluster_kubeconfig": kube.kubeconfig(tmp_path),
            "cluster_interval_s": 0.2,
        }
        redis.sadd(keys.busy("turbo"), "w-1-abc123")
        redis.sadd(keys.held("w-1-abc123"), "job:attempt")
        redis.zadd(keys.waiting("turbo", Lane.NORMAL), {"job": 1})
        for number in range(3):
            load_failed(redis, keys, "turbo", f"w-1-{number}", "no checkpoint")
        environment = {**os.environ, **{f"SERINETTE_{name.upper()}": str(value) for name, value in settings.items()}}
        process = subprocess.Popen(
            leashed([sys.executable, "-m", "controller"]), env=environment, stdout=log, stderr=log
        )
        try:
            assert eventually(lambda: bool(kube.patches))
            assert kube.patches[0].path == "/api/v1/namespaces/music/pods/w-1"
            assert eventually(
                lambda: reported(redis, keys) == "no node has a free nvidia.com/gpu: none of the 0 nodes has any"
            )
            assert eventually(lambda: redis.sismember(keys.busy("turbo"), PROBE))
            assert redis.smembers(keys.brake("turbo")) == {b"load: the last 3 loads of the model failed: no checkpoint"}
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
            process.wait()


def reported(redis: Redis, keys: Keys) -> str | None:
    found: Any = redis.hgetall(keys.holdups)
    return next((each.words for each in parse_holdups(found).values()), None)
