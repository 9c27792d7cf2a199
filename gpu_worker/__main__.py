"""`python -m gpu_worker`: one worker pod."""

from __future__ import annotations

import logging
import sys

from gpu_worker.presence_reporter import report_ended
from gpu_worker.process_setup import (
    CONFIGURATION_EXIT_CODE,
    CRASHED_EXIT_CODE,
    TROUBLES,
    exit_code_of,
    private_run_dir,
)
from gpu_worker.settings import WorkerSettings
from gpu_worker.supervisor import PodSupervisor
from serinette import logs
from serinette.errors import ConfigurationError
from serinette.settings import read
from serinette.telemetry import new_registry, serve_metrics

log = logging.getLogger(__name__)


def main() -> int:
    """Read the settings and supervise."""
    try:
        settings = read(WorkerSettings)
        logs.configure(settings, "worker")
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return CONFIGURATION_EXIT_CODE
    try:
        status = _supervise(settings)
    except (ConfigurationError, OSError) as error:
        status = exit_code_of(error)
        if status == CRASHED_EXIT_CODE:
            raise
        log.error("%s", error)
    if trouble := TROUBLES.get(status):
        report_ended(settings, trouble)
    return status


def _supervise(settings: WorkerSettings) -> int:
    with private_run_dir(settings.work_dir) as run_dir:
        supervisor, registry = PodSupervisor(settings, run_dir), new_registry()
        registry.register(supervisor.metrics)
        serve_metrics(registry, settings)
        return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
