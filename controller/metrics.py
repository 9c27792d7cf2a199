"""`/metrics` of the controller: the queue, and what has been counted in Redis, exposed by the replica that leads.

Every replica could read the same from Redis; if each exposed it, sums over replicas would be wrong. So only the leader
does, and a queue that no replica exposes means that none leads (docs/observability.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from serinette import counters
from serinette.brake import Cause, in_force
from serinette.counters import MEASURES, Counters
from serinette.jobs.registries import ask_heads, known_lanes, oldest_s
from serinette.names import Keys, Lane
from serinette.presence import Presence, WorkerStage, present

log = logging.getLogger(__name__)


class ControllerMetrics:
    """What a replica exposes of itself, and of the queue while it leads."""

    def __init__(
        self,
        registry: CollectorRegistry,
        redis: Redis,
        keys: Keys,
        leading: Callable[[], bool],
        stalled: Callable[[], int] = lambda: 0,
    ) -> None:
        """`leading`: whether this replica does. `stalled`: how many of its duties hang."""
        self._reconciled = Counter(
            "serinette_controller_reconciled_jobs",
            "Jobs that the sweeper moved on, by what it did.",
            ["action"],
            registry=registry,
        )
        self._reconciled.labels("leave")  # from 0 on, or an alert on its increase would miss the first
        self._round = Gauge(
            "serinette_controller_round_timestamp_seconds", "When this replica last ended a round.", registry=registry
        )
        leads = Gauge("serinette_controller_leading", "Whether this replica leads.", registry=registry)
        leads.set_function(lambda: float(leading()))
        hang = Gauge(
            "serinette_controller_stalled_duties",
            "Duties of this replica that hang in a round: another replica leads, if there is one.",
            registry=registry,
        )
        hang.set_function(stalled)
        registry.register(QueueCollector(redis, keys, leading))

    def reconciled(self, action: str, number: int = 1) -> None:
        """So many jobs were moved on."""
        self._reconciled.labels(action).inc(number)

    def round_ended(self) -> None:
        """A round has ended well."""
        self._round.set_to_current_time()


class QueueCollector(Collector):
    """Reads the queue at each scrape, in a few round trips, and changes nothing in it."""

    def __init__(self, redis: Redis, keys: Keys, leading: Callable[[], bool]) -> None:
        self._redis = redis
        self._keys = keys
        self._leading = leading

    def describe(self) -> Iterable[Metric]:
        """All that it may expose, without values."""
        return [*_gauges().values(), *(_counted(measure, Counters({})) for measure in MEASURES)]

    def collect(self) -> Iterator[Metric]:
        """What is now; nothing while another replica leads, or Redis is away."""
        if not self._leading():
            return
        try:
            workers = present(self._redis, self._keys)
            gauges = self._queue(workers)
            counted = Counters.parse(self._redis.hgetall(self._keys.counters))
        except RedisError as error:
            log.warning("the queue cannot be reported: %s", error)
            return
        yield from gauges
        yield from (_counted(measure, counted) for measure in MEASURES)

    def _queue(self, workers: Sequence[Presence]) -> list[Metric]:
        used = [pool for pool, _ in known_lanes(self._redis, self._keys)]
        pools = sorted({*used, *(worker.pool for worker in workers)})
        gauges = _gauges()
        places = [(pool, lane) for pool in pools for lane in Lane]
        for (pool, lane), (depth, running, age_s) in zip(places, self._lanes(places), strict=True):
            gauges["depth"].add_metric([pool, lane], depth)
            gauges["oldest"].add_metric([pool, lane], age_s)
            gauges["running"].add_metric([pool, lane], running)
        for pool in pools:
            ours = [worker for worker in workers if worker.pool == pool]
            for stage in WorkerStage:
                gauges["workers"].add_metric([pool, stage], sum(worker.stage is stage for worker in ours))
            gauges["slots"].add_metric([pool], sum(worker.slots for worker in ours))
            gauges["busy"].add_metric([pool], sum(worker.busy_slots for worker in ours))
        for pool, (busy, reasons) in zip(pools, self._scaling(pools), strict=True):
            gauges["workers_busy"].add_metric([pool], busy)
            for cause in Cause:
                gauges["brake"].add_metric([pool, cause], any(reason.startswith(f"{cause}: ") for reason in reasons))
        gauges["unfinished"].add_metric([], self._redis.zcard(self._keys.live))
        gauges["webhooks"].add_metric([], self._redis.zcard(self._keys.webhooks))
        for name, number in self._memory().items():
            gauges[name].add_metric([], number)
        return list(gauges.values())

    def _memory(self) -> dict[str, int]:
        """What Redis holds, and may; nothing where its user may not ask."""
        with suppress(NoPermissionError):
            seen = self._redis.info("memory")
            return {"memory": int(seen["used_memory"]), "memory_max": int(seen.get("maxmemory", 0))}
        return {}

    def _scaling(self, pools: Sequence[str]) -> list[tuple[int, tuple[str, ...]]]:
        """What KEDA reads beside the lanes: how many workers are busy, and why no more are started."""
        with self._redis.pipeline(transaction=False) as pipe:
            for pool in pools:
                pipe.scard(self._keys.busy(pool))
                pipe.smembers(self._keys.brake(pool))
            found = pipe.execute()
        return [(busy, in_force(reasons)) for busy, reasons in zip(found[::2], found[1::2], strict=True)]

    def _lanes(self, places: Sequence[tuple[str, Lane]]) -> list[tuple[int, int, float]]:
        """Depth, running and age of the oldest of each lane."""
        with self._redis.pipeline(transaction=False) as pipe:
            for pool, lane in places:
                waiting = self._keys.waiting(pool, lane)
                pipe.zcard(waiting)
                pipe.zcard(self._keys.started(pool, lane))
                ask_heads(pipe, waiting)
            found = pipe.execute()
            rows = [found[4 * i : 4 * i + 4] for i in range(len(places))]
            for _, _, head, first in rows:
                pipe.zmscore(self._keys.live, [*head, *first] or [""])
            pipe.time()
            *scores, (at_s, _) = pipe.execute()
        ages_s = (oldest_s(lane, at_s) or 0.0 for lane in scores)
        return [(depth, running, age_s) for (depth, running, _, _), age_s in zip(rows, ages_s, strict=True)]


def _gauges() -> dict[str, GaugeMetricFamily]:
    lane, pool = ["pool", "lane"], ["pool"]
    return {
        "depth": _gauge("queue_depth", "Jobs that wait in a lane.", lane),
        "oldest": _gauge("queue_oldest_seconds", "Age of the oldest job in a lane, 0 when empty.", lane),
        "running": _gauge("jobs_running", "Jobs that a slot holds.", lane),
        "unfinished": _gauge("jobs_unfinished", "Jobs that were accepted and have not ended, of all pools.", []),
        "memory": _gauge("queue_memory_used_bytes", "Memory that Redis uses.", []),
        "memory_max": _gauge("queue_memory_max_bytes", "Redis's maxmemory, where new jobs are refused; 0: none.", []),
        "webhooks": _gauge("webhooks_waiting", "Ended jobs whose webhook has not been delivered yet.", []),
        "workers": _gauge("workers", "Workers that are up, by stage.", ["pool", "stage"]),
        "slots": _gauge("slots", "Slots of the workers that are up.", pool),
        "busy": _gauge("slots_busy", "Slots that hold a job.", pool),
        "workers_busy": _gauge("workers_busy", "Workers that KEDA lets the pool keep: those that hold a job.", pool),
        "brake": _gauge("brake", "1 while no more workers are started, by cause.", ["pool", "cause"]),
    }


def _gauge(name: str, text: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"serinette_{name}", text, labels=labels)


def _counted(measure: counters.Measure, counted: Counters) -> Metric:
    name = f"serinette_{measure.name}"
    if not measure.bounds:
        counts = CounterMetricFamily(name, measure.help, labels=measure.labels)
        for labels, value in counted.counts(measure):
            counts.add_metric(labels, value)
        return counts
    histogram = HistogramMetricFamily(name, measure.help, labels=measure.labels)
    for labels, numbers, summed in counted.distributions(measure):
        total, buckets = 0, []
        for bound, count in zip((*measure.bounds, float("inf")), numbers, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), float(total)))
        histogram.add_metric(labels, buckets, summed)
    return histogram
