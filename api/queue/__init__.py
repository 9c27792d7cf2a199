"""The only door to RQ: submit, get, list, cancel, erase, counts. Blocking; routes call it from threads."""

from api.queue.entry import keyed_job_id
from api.queue.explain import Pool
from api.queue.jobs import JobQueue, Page

__all__ = ["JobQueue", "Page", "Pool", "keyed_job_id"]
