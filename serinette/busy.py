"""Names of workers, and of the slots and hosts that they have. Which of them hold work is a set in Redis, `Keys.busy`,
written by the transitions that begin and end an attempt (serinette/jobs/): what KEDA counts as those that keep their
place, however many songs each holds.
"""

from __future__ import annotations


def worker_of(slot: str) -> str:
    """The worker that a slot belongs to, by the name that its supervisor gave it: `{worker}.{number}.{random}`."""
    return slot.rsplit(".", 2)[0]


def host_of(worker: str) -> str:
    """The host, and so the pod, of a worker: its supervisor's name is `{host}-{random}`, anew at each start."""
    return worker.rpartition("-")[0] or worker
