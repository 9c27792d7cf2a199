"""`python -m gpu_worker`: one worker pod."""

from __future__ import annotations

import logging
import sys

from gpu_worker.engine.environment import CONFIGURATION_EXIT_CODE
from gpu_worker.run_dir import private_run_dir
from gpu_worker.settings import WorkerSettings
from gpu_worker.supervisor import Supervisor
from serinette.errors import ConfigurationError
from serinette.settings import read


def main() -> int:
    """Read the settings and supervise."""
    try:
        settings = read(WorkerSettings)
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
        with private_run_dir(settings.work_dir) as run_dir:
            return Supervisor(settings, run_dir).run()
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return CONFIGURATION_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
