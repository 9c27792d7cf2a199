"""`python -m gpu_worker.engine`: the process that holds the model. Started by the supervisor."""

from __future__ import annotations

import importlib
import sys
import warnings
from functools import partial

from gpu_worker.engine.interface import Engine
from gpu_worker.engine.serving.server import run
from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError
from serinette.settings import read


def load(settings: WorkerSettings) -> Engine:
    """Import torch and load the model: seconds to minutes, while slots can already connect."""
    warnings.simplefilter(
        "ignore", FutureWarning
    )  # diffusers' and torch's to each other; nothing that a reader can change
    engine: Engine = importlib.import_module("gpu_worker.engine.loading").load(settings)
    return engine


def main() -> int:
    """Run the engine process."""
    try:
        settings = read(WorkerSettings)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return CONFIGURATION_EXIT_CODE
    return run(settings, partial(load, settings))


if __name__ == "__main__":
    sys.exit(main())
