"""`python -m gpu_worker.slot`: one slot, started by the supervisor."""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import sys

import rq.defaults
from redis.exceptions import ResponseError
from rq.exceptions import StopRequested

from gpu_worker.process_setup import CONFIGURATION_EXIT_CODE, CRASHED_EXIT_CODE, exit_code_of
from gpu_worker.settings import WorkerSettings
from gpu_worker.slot.drain import Drain, connect_patiently
from gpu_worker.slot.engine_client import EngineClient
from gpu_worker.slot.generation import SlotResources
from gpu_worker.slot.lane_order import CYCLE
from gpu_worker.slot.spool import Spool
from gpu_worker.slot.worker import SlotWorker
from serinette import logs, telemetry
from serinette.errors import ConfigurationError
from serinette.settings import read
from serinette.store import Store

log = logging.getLogger(__name__)


def run(settings: WorkerSettings, name: str) -> int:
    """Serve the pool's lanes until a signal says to leave; the exit status.

    Raises:
        ConfigurationError: RQ uses another prefix, or the store cannot be opened.
    """
    if settings.redis_prefix != rq.defaults.RQ_KEY_PREFIX:
        raise ConfigurationError(
            f"RQ_KEY_PREFIX: RQ was loaded with {rq.defaults.RQ_KEY_PREFIX}, the settings say {settings.redis_prefix}"
        )
    drain = Drain(settings.drain_timeout_s)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, drain.on_signal)
    engine = EngineClient(settings.engine_socket, settings.stall_timeout_s, settings.cancel_timeout_s)
    resources = SlotResources(engine, Store.open(settings), settings, Spool.open(settings))
    try:
        worker = SlotWorker(name, connect_patiently(settings, drain), resources, drain)
        # A pod that takes a few jobs and goes must have its turn at the lower lanes too.
        worker.claims = secrets.randbelow(CYCLE)
        worker.work(logging_level="WARNING")
    except StopRequested:
        log.warning("left while Redis was away")
    except ResponseError as error:  # while it began or ended; its supervisor starts it again after a pause
        log.warning("Redis takes nothing at the moment: %s", error)
    engine.close()
    return 0 if drain.requested else 1


def main() -> int:
    """Read arguments and settings, and run."""
    parser = argparse.ArgumentParser(prog="python -m gpu_worker.slot")
    name = f"slot.{secrets.token_hex(3)}"
    parser.add_argument("--name", default=name, help="its name as an RQ worker, never used before")
    arguments = parser.parse_args()
    try:
        settings = read(WorkerSettings)
        logs.configure(settings, "slot")
        telemetry.configure(settings, "slot")
        return run(settings, arguments.name)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return CONFIGURATION_EXIT_CODE
    except OSError as error:
        if (status := exit_code_of(error)) == CRASHED_EXIT_CODE:
            raise
        log.error("%s", error)
        return status


if __name__ == "__main__":
    sys.exit(main())
