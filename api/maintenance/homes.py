"""Which pool takes the jobs of one that is no more. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rq.job import Job as RqJob

from serinette.container import CONTAINERS_POOL
from serinette.errors import PoolRemoved
from serinette.job import JobError, JobStatus
from serinette.ledger import Outcome
from serinette.pools import PoolFacts, of_name, serving


class Homes:
    """The pools that there are; without a chart (none are told of) none is taken for removed."""

    def __init__(self, pools: Sequence[PoolFacts] = (), default: str = "") -> None:
        self._pools = pools
        self._default = default

    def removed(self, pool: str) -> bool:
        """Whether it is none of the pools; without a chart nobody knows."""
        return bool(self._pools) and pool != CONTAINERS_POOL and of_name(self._pools, pool) is None

    def of(self, job: RqJob) -> str | None:
        """The pool that holds the model which a job asks for; None when none does."""
        model = job.kwargs["spec"].get("model")
        if model is None:
            return self._default if of_name(self._pools, self._default) else None
        return serving(self._pools, model, self._default)

    def stranded(self, job: RqJob) -> Outcome:
        """The end of a job that no pool takes."""
        pool, model = job.origin.rpartition(".")[0], job.kwargs["spec"].get("model")
        asked = f"none that is left holds model {model}" if model else "there is no default pool to take its place"
        published = ", ".join(sorted({each.published for each in self._pools}))
        message = f"pool {pool} was removed, and {asked}; published here are {published}: submit it again with one"
        return Outcome(JobStatus.FAILED, JobError(code=PoolRemoved.code, message=message))
