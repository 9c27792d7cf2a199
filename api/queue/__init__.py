"""The only door to RQ: submit, get, list, cancel, erase, counts. Blocking; routes call it from threads."""

from api.queue.explain import Pool
from api.queue.jobs import JobQueue, Page, keyed_job_id

__all__ = ["JobQueue", "Page", "Pool", "keyed_job_id"]
