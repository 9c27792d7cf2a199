"""What the platform's probe sees of a worker: the command is the chart's own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from scripts.chart_tools import CHART
from serinette.presence import WorkerStage
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
