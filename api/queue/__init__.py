"""Operations on jobs for routes: submit, get, list, cancel, erase, counts. State changes are in serinette/jobs."""

from api.queue.explanations import Pool
from api.queue.service import JobQueue
from api.queue.submission import keyed_job_id

__all__ = ["JobQueue", "Pool", "keyed_job_id"]
