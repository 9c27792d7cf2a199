"""`/metrics` of a worker: its slots, its engine and its GPU, reported by the supervisor for all its processes.

What songs took is counted in Redis (serinette/counters.py) and exposed by the controller: a pod may be gone before the
next scrape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpu_worker.wire import Vitals
from serinette import __version__
from serinette.presence import Presence, WorkerStage


@dataclass(frozen=True, slots=True)
class Pod:
    """A worker at one moment."""

    presence: Presence
    vitals: Vitals | None = None
    cold_start_s: float | None = None
    deaths: Counter[str] = field(default_factory=Counter)  # of the engine and of slots, unasked


class WorkerMetrics(Collector):
    """Reports the pod as the supervisor saw it last; never waits for anything."""

    def __init__(self, presence: Presence) -> None:
        self.pod = Pod(presence)

    def describe(self) -> Iterable[Metric]:
        """All that it may report, without values."""
        return _families().values()

    def collect(self) -> Iterator[Metric]:
        """What is now; an engine that is not there says nothing."""
        pod, found = self.pod, _families()
        presence = pod.presence
        model = presence.model.name if presence.model else ""
        found["info"].add_metric([presence.pool, presence.name, model, presence.device, __version__], 1)
        for stage in WorkerStage:
            found["stage"].add_metric([stage], float(presence.stage is stage))
        found["slots"].add_metric([], presence.slots)
        found["busy"].add_metric([], presence.busy_slots)
        for part in ("engine", "slot"):
            found["deaths"].add_metric([part], pod.deaths[part])
        if pod.cold_start_s is not None:
            found["cold_start"].add_metric([], pod.cold_start_s)
        for part, seconds in presence.cold_start.parts().items():
            found["cold_start_part"].add_metric([part], seconds)
        for name, value in (pod.vitals.model_dump(exclude={"type", "first_song_s"}) if pod.vitals else {}).items():
            if value is not None:
                found[name].add_metric([], value)
        yield from found.values()


def _families() -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
    info = ["pool", "worker", "model", "device", "version"]
    return {
        "info": _gauge("info", "1, with what this worker is as labels.", info),
        "stage": _gauge("stage", "1 for the stage that this worker is in, 0 for the others.", ["stage"]),
        "slots": _gauge("slots", "Jobs that this worker holds at most."),
        "busy": _gauge("slots_busy", "Jobs that this worker holds."),
        "cold_start": _gauge("cold_start_seconds", "From this worker's first process to a model that was ready."),
        "cold_start_part": _gauge("cold_start_part_seconds", "Parts of this worker's start.", ["part"]),
        "deaths": _counter("child_deaths", "Processes of this worker that ended unasked.", ["part"]),
        "busy_s": _counter("engine_busy_seconds", "Time that the engine has spent generating since it started."),
        "audio_s": _counter("engine_audio_seconds", "Audio that the engine has generated since it started."),
        "steps": _counter("engine_steps", "Denoising steps since the engine started, those of each song of a batch."),
        "gpu_memory_used_bytes": _gauge("gpu_memory_used_bytes", "Memory in use on the GPU, by all processes."),
        "gpu_memory_total_bytes": _gauge("gpu_memory_total_bytes", "Memory of the GPU."),
        "gpu_utilization": _gauge("gpu_utilization_ratio", "Share of the last moments in which the GPU worked."),
    }


def _gauge(name: str, text: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"serinette_worker_{name}", text, labels=labels)


def _counter(name: str, text: str, labels: Sequence[str] = ()) -> CounterMetricFamily:
    return CounterMetricFamily(f"serinette_worker_{name}", text, labels=labels)
