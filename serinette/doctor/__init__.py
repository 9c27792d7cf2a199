"""What is wrong with a deployment, in words, each with what to do: `serinette doctor` (docs/operator.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serinette.doctor.findings import Finding, Level, answered, healthy

if TYPE_CHECKING:
    from pathlib import Path

    from serinette.doctor.cluster import Place
    from serinette.doctor.queue import DoctorSettings
    from serinette.settings import SharedSettings

__all__ = ["Finding", "Level", "diagnose", "healthy"]

_REPORT = "a fault of the doctor itself: report it, with this line"


def diagnose(
    settings: DoctorSettings, *, queue: bool, store: bool, place: Place | None, data_dir: Path | None = None
) -> list[Finding]:
    """Ask queue, store, cluster and the `serinette up` of a data directory, as far as wanted. What fails in one of them
    keeps no other from being asked.
    """
    from serinette.doctor.machine import check_machine, settings_of  # noqa: PLC0415  # as below
    from serinette.doctor.queue import check_queue  # noqa: PLC0415  # each needs an extra that the others do without
    from serinette.doctor.store import check_store  # noqa: PLC0415  # as above
    from serinette.local import last_run  # noqa: PLC0415  # as above

    found: list[Finding] = []
    if data_dir and (run := last_run(data_dir)):
        settings = settings_of(data_dir, settings)
        found += check_machine(run, data_dir, settings)
        queue, store = queue or (run.running and "redis_url" in settings.model_fields_set), True
    if queue:
        found += answered("queue", "reachable", _REPORT, lambda: check_queue(settings, settings.durability))
    reached = queue and any(each.check == "reachable" and each.level is Level.OK for each in found)
    if store:
        found += answered("store", "writable", _REPORT, lambda: check_store(settings))
    if place:
        found += answered("cluster", "reachable", _REPORT, lambda: _check_cluster(place, settings if reached else None))
    return found


def _check_cluster(place: Place, settings: SharedSettings | None) -> list[Finding]:
    from serinette.doctor import keda, pods  # noqa: PLC0415  # of the cluster extra
    from serinette.doctor.cluster import look_at_cluster  # noqa: PLC0415  # as above

    seen = look_at_cluster(place)
    found = list(pods.judge_cluster(seen))
    if seen.trouble:
        return found
    questions = {
        "keda": lambda: keda.judge_keda(seen),
        "pods": lambda: pods.judge_pods(seen),
        "scaling": lambda: keda.check_scaling(seen, settings),
    }
    for part, question in questions.items():
        found += answered(part, "judged", _REPORT, question)
    return found
