"""`python -m controller`: the always-on process beside the queue. Every replica sweeps; one leads and does the rest.

`python -m controller restore` enters in Redis what only the store remembers (docs/disaster.md), and ends.
`python -m controller check-drained` says whether work of before an upgrade remains (docs/operator.md), and ends.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from threading import Event, Thread

from redis import Redis
from redis.exceptions import RedisError

from controller.autoscaling import Brakes
from controller.batches import Batches
from controller.cluster import ContainerJobs, WorkerPods, connect
from controller.containers.manifest import selector
from controller.containers.runner import Containers
from controller.leader_election import FailureLog, LeaderElection, loop
from controller.metrics import ControllerMetrics
from controller.pods import PodWatch
from controller.restore import Restore
from controller.retention import Retention
from controller.settings import ControllerSettings
from controller.sweeper import Sweeper
from controller.upgrade_check import OldWork, old_work
from controller.webhooks import Webhooks
from serinette import logs
from serinette.errors import ConfigurationError, StoreUnavailable
from serinette.housekeeping import HousekeepingRedis
from serinette.settings import connect_redis, read
from serinette.store import Store
from serinette.telemetry import new_registry, serve_metrics

log = logging.getLogger("controller")

_JOIN_S = 5.0


def run(settings: ControllerSettings, stop: Event) -> None:
    """Keep queue and store in order until `stop`.

    Raises:
        ConfigurationError: the store's URL is wrong, or work in an older version's layout remains.
    """
    redis, store = HousekeepingRedis(connection_pool=connect_redis(settings).connection_pool), Store.open(settings)
    leader = LeaderElection(redis, settings.keys, settings.lease_s)
    registry = new_registry()
    metrics = ControllerMetrics(
        registry, connect_redis(settings), settings.keys, lambda: leader.leading, lambda: len(leader.stalled)
    )
    serve_metrics(registry, settings)
    if left := _old_work(settings, redis, stop):
        raise ConfigurationError(str(left))
    # Each in a thread of its own: what it asks (a store, targets) may hang.
    renewal = leader, min(settings.interval_s, settings.lease_s / 5), stop
    election = Thread(target=loop, args=("leader election", *renewal), name="leader election", daemon=True)
    election.start()
    for name, duty, pause_s in _duties(settings, redis, store, stop):
        Thread(target=loop, args=(name, duty, pause_s, stop, leader), name=name, daemon=True).start()
    log.info("started interval_s=%g heartbeat_ttl_s=%d", settings.interval_s, settings.heartbeat_ttl_s)
    loop("sweeper", Sweeper(redis, store, settings, metrics), settings.interval_s, stop)
    election.join(_JOIN_S)  # or it might take the lead again
    try:
        leader.resign()
    except RedisError as error:
        log.warning("the next replica leads when this one's lease has run out: %s", error)
    log.info("stopped")


def _duties(
    settings: ControllerSettings, redis: Redis, store: Store, stop: Event
) -> Iterator[tuple[str, Callable[[], object], float]]:
    """What the leader does: a name, one round of it, and the pause after each."""
    retention = Retention(redis, settings.keys, store, settings.retention_s)
    yield "retention", partial(retention.sweep, stop), settings.retention_interval_s
    yield "webhooks", Webhooks(redis, settings), settings.interval_s
    yield "batches", Batches(redis, store, settings), settings.interval_s
    yield "brakes", Brakes(redis, store, settings), settings.interval_s
    namespace = settings.cluster_namespace
    if namespace and (connection := connect(settings.cluster_kubeconfig)):
        pods = WorkerPods(connection, namespace, settings.cluster_selector)
        yield "pods", PodWatch(redis, pods, settings), settings.cluster_interval_s
    namespace = settings.containers_namespace if settings.containers else None
    if namespace and (connection := connect(settings.cluster_kubeconfig)):
        # An empty endpoint is the store's own; presigned URLs are for the containers' pods here.
        endpoint = settings.containers_store_endpoint or settings.store_endpoint or ""
        signing = Store.open(settings.model_copy(update={"store_public_endpoint": endpoint}))
        jobs = ContainerJobs(connection, namespace, selector(settings.containers_instance))
        yield "containers", Containers(redis, signing, settings, jobs), settings.interval_s


def _old_work(settings: ControllerSettings, redis: Redis, stop: Event) -> OldWork:
    """In a Redis that may not be up yet."""
    failures = FailureLog(log, "looking for work of an older version")
    while True:
        try:
            return old_work(redis, settings.keys)
        except RedisError as error:
            failures.note(error)
            if stop.wait(settings.interval_s):
                return OldWork()


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
            left = old_work(connect_redis(settings), settings.keys)
            sys.stdout.write(f"{left}\n" if left else "nothing remains in an older version's layout\n")
            return 1 if left else 0
        if command == "restore":
            count = Restore(connect_redis(settings), Store.open(settings), settings.keys, settings.retention_s)()
            sys.stdout.write(f"{count} jobs restored\n")
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
