"""`python -m gpu_worker`: one worker pod."""

from __future__ import annotations

import sys

from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE, private_run_dir
from gpu_worker.settings import WorkerSettings
from gpu_worker.supervisor import PodSupervisor
from serinette import logs
from serinette.errors import ConfigurationError
from serinette.settings import read
from serinette.telemetry import new_registry, serve_metrics


def main() -> int:
    """Read the settings and supervise."""
    try:
        settings = read(WorkerSettings)
        logs.configure(settings, "worker")
        with private_run_dir(settings.work_dir) as run_dir:
            supervisor, registry = PodSupervisor(settings, run_dir), new_registry()
            registry.register(supervisor.metrics)
            serve_metrics(registry, settings)
            return supervisor.run()
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return CONFIGURATION_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
