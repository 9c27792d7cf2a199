"""What the platform's probe sees of a worker: the command is the chart's own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from redis import Redis

from scripts.chart_tools import CHART
from serinette.job import now
from serinette.presence import WorkerStage
from tests.engines import MODEL
from tests.pod import pod
from tests.processes import eventually

TEMPLATE = (CHART / "templates" / "worker" / "deployments.yaml").read_text()


def test_a_worker_is_ready_from_its_loaded_model_until_it_leaves(tmp_path: Path, redis_url: str) -> None:
    probe = re.search(r'command: \[sh, -c, "test -e /var/lib/serinette(/[^"]+)"\]', TEMPLATE)
    assert probe, "the chart's readiness probe is not what this test knows"
    with pod(tmp_path, redis_url) as worker:
        command = ["sh", "-c", f"test -e {worker.directory / 'work'}{probe[1]}"]

        def ready() -> bool:
            return subprocess.run(command, check=False).returncode == 0

        assert not ready()
        process = worker.start()
        worker.wait_stage(WorkerStage.READY)
        assert eventually(ready, 10)
        worker.wait_step(worker.submit("slow 3"))
        process.terminate()
        worker.wait_stage(WorkerStage.DRAINING)
        assert not ready(), "a worker that leaves is the first that a scaled-down pool may lose"
        assert process.wait(30) == 0, worker.log()


def test_a_worker_whose_slots_cannot_start_is_not_ready_and_says_why(tmp_path: Path, redis_url: str) -> None:
    host = urlsplit(redis_url).netloc
    with Redis.from_url(redis_url) as redis, pod(tmp_path, f"redis://worker:secret@{host}") as worker:
        # RQ's registration of a slot is refused; what the supervisor reports is not.
        prefix = worker.settings.keys.prefix
        rights = ("%R~*", f"~{prefix}", f"~{prefix}:serinette:*", "allchannels", "+@all")
        redis.execute_command("ACL", "SETUSER", "worker", "on", ">secret", *rights)
        worker.start()
        again = re.compile(r"the slot 0 ended with status \d+ before it was ready(, \d+ times in a row)?; see its log")
        assert eventually(lambda: (seen := worker.presence()) and again.fullmatch(seen.message), 20), (
            f"{worker.presence()} {worker.log()}"
        )
        seen = worker.presence()
        assert seen and (seen.stage, seen.model) == (WorkerStage.LOADING, MODEL), "the engine is ready, and no slot"
        redis.execute_command("ACL", "SETUSER", "worker", "allkeys")
        assert worker.wait_stage(WorkerStage.READY).message == ""
        # Another load counts from its own beginning, not from the worker's start.
        began = now()
        os.kill(worker.child(worker.processes[0], "tests.engines").pid, signal.SIGKILL)
        assert eventually(lambda: (seen := worker.presence()) and seen.loading_since)
        later = worker.presence()
        assert later and later.loading_since
        assert later.loading_since >= began > later.started_at
