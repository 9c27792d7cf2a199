"""The only door to RQ: submit, get, list, cancel, erase, counts. Blocking; routes call it from threads."""

from api.queue.entry import keyed_job_id
from api.queue.explain import Pool
from api.queue.jobs import JobQueue, Page
from api.queue.sighting import Elsewhere, Seen, no_such_job

__all__ = ["Elsewhere", "JobQueue", "Page", "Pool", "Seen", "keyed_job_id", "no_such_job"]
