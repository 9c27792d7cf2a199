"""`python -m controller`: the always-on process beside the queue. Its sweeper runs in every replica, of everything
else one at a time.

`python -m controller restore` enters in Redis what only the store remembers (docs/disaster.md), and ends.
`python -m controller check-drained` says whether work of before an upgrade remains (docs/operator.md), and ends.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from threading import Event, Thread

from redis import Redis
from redis.exceptions import RedisError

from controller.batches import Batches
from controller.cluster import Cluster, connect
from controller.containers import Containers
from controller.containers.cluster import Jobs
from controller.drained import OldWork, old_work
from controller.lease import FailureLog, Lease, keep
from controller.metrics import MaintenanceMetrics
from controller.pools import Pools
from controller.restore import Restore
from controller.retention import Retention
from controller.settings import ControllerSettings
from controller.surroundings import Surroundings
from controller.sweeper import Sweeper
from controller.webhooks import Webhooks
from serinette import logs
from serinette.errors import ConfigurationError, StoreUnavailable
from serinette.settings import connect_redis, read
from serinette.store import Store
from serinette.telemetry import new_registry, serve_metrics

log = logging.getLogger("controller")

# Of duties whose rounds wait for a store or an API server: longer than those take to say no.
_SLOW_LEASE_S = 30.0


def run(settings: ControllerSettings, stop: Event) -> None:
    """Keep queue and store in order until `stop`.

    Raises:
        ConfigurationError: the store's URL is wrong, or work in an older version's layout remains.
    """
    redis, store = connect_redis(settings), Store.open(settings)
    retention = Retention(redis, settings.keys, store, settings.retention_s)

    def leased(name: str, lease_s: float = settings.lease_s) -> Lease:
        return Lease(redis, settings.keys.lease(name), lease_s)

    reporting = leased("metrics")
    registry = new_registry()
    metrics = MaintenanceMetrics(registry, connect_redis(settings), settings.keys, lambda: reporting.held)
    serve_metrics(registry, settings)
    if left := _old_work(settings, redis, stop):
        raise ConfigurationError(str(left))
    # How long a sweep takes nobody knows; two at a time would only delete the same things.
    sweep_s = settings.retention_interval_s
    leases = [
        _beside(lambda: None, reporting, settings.interval_s, stop),
        _beside(partial(retention.sweep, stop), leased("retention", 2 * sweep_s), sweep_s, stop),
        _beside(Webhooks(redis, settings), leased("webhooks"), settings.interval_s, stop),
        _beside(Batches(redis, store, settings), leased("batches"), settings.interval_s, stop),
        _beside(Pools(settings, store), leased("pools", _SLOW_LEASE_S), settings.interval_s, stop),
    ]
    place = (settings.cluster_namespace, settings.cluster_selector, settings.cluster_kubeconfig)
    if cluster := Cluster.open(*place):
        surroundings = Surroundings(cluster, settings)
        leases.append(_beside(surroundings, leased("cluster", _SLOW_LEASE_S), settings.cluster_interval_s, stop))
    if duty := _containers(settings, redis):
        leases.append(_beside(duty, leased("containers", _SLOW_LEASE_S), settings.interval_s, stop))
    log.info("started interval_s=%g heartbeat_ttl_s=%d", settings.interval_s, settings.heartbeat_ttl_s)
    keep(partial(Sweeper, redis, store, settings, metrics), settings.interval_s, stop, "sweeper")
    try:
        for each in leases:
            each.release()
    except RedisError as error:
        log.warning("the leases run out by themselves: %s", error)
    log.info("stopped")


def _old_work(settings: ControllerSettings, redis: Redis, stop: Event) -> OldWork:
    """Of a Redis that may still be on its way."""
    failures = FailureLog(log, "looking for work of an older version")
    while True:
        try:
            return old_work(redis, settings.keys)
        except RedisError as error:
            failures.note(error)
            if stop.wait(settings.interval_s):
                return OldWork()


def _containers(settings: ControllerSettings, redis: Redis) -> Containers | None:
    """What runs containers, where they are taken and there is a cluster."""
    connection = connect(settings.cluster_kubeconfig) if settings.containers else None
    if connection is None or settings.containers_namespace is None:
        return None
    # An empty endpoint is the store's own; presigned URLs are for the containers' pods here.
    endpoint = settings.containers_store_endpoint or settings.store_endpoint or ""
    store = Store.open(settings.model_copy(update={"store_public_endpoint": endpoint}))
    jobs = Jobs(connection, settings.containers_namespace, settings.containers_instance)
    return Containers(redis, store, settings, jobs)


def _beside(duty: Callable[[], object], lease: Lease, pause_s: float, stop: Event) -> Lease:
    """Keep a duty in a thread of its own: what it asks (a store, targets) may hang."""
    Thread(target=keep, args=(lambda: duty, pause_s, stop, lease), name=lease.name, daemon=True).start()
    return lease


def restore(settings: ControllerSettings) -> None:
    """Enter in Redis what only the store remembers.

    Raises:
        StoreUnavailable, RedisError: it was cut short; to be repeated.
    """
    count = Restore(connect_redis(settings), Store.open(settings), settings.keys, settings.retention_s)()
    sys.stdout.write(f"{count} jobs restored\n")


def check_drained(settings: ControllerSettings) -> int:
    """Say whether work in an older version's layout remains; exit status 1 while it does. Raises RedisError."""
    left = old_work(connect_redis(settings), settings.keys)
    sys.stdout.write(f"{left}\n" if left else "nothing remains in an older version's layout\n")
    return 1 if left else 0


def main() -> int:
    """Run until SIGTERM or SIGINT; exit status 0, 1 when a command was cut short or work remains, 2 when refused."""
    parser = argparse.ArgumentParser(prog="python -m controller", description="Keep queue and store in order.")
    parser.add_argument("command", nargs="?", choices=("run", "restore", "check-drained"), default="run")
    command = parser.parse_args().command
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        settings = read(ControllerSettings)
        logs.configure(settings, "controller")
        if command == "check-drained":
            return check_drained(settings)
        if command == "restore":
            restore(settings)
        else:
            run(settings, stop)
    except (RedisError, StoreUnavailable) as error:
        sys.stderr.write(f"cut short, repeat it: {error}\n")
        return 1
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
