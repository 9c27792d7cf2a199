"""The life cycle of a job. Its state changes only by the transitions in transitions/.

`calls` types them, `script` runs them, `entry` reads a job's record, `submission` builds a new one, `finishing` ends a
job as the store decides. RQ's hash, lists, registries and workers agree with every state (docs/decisions/0001).
"""

from serinette.jobs import calls, finishing
from serinette.jobs.calls import AttemptState, Claimed, Finished, Lease, Outcome, Refusal, Seen, Shrunk, Submitted
from serinette.jobs.entry import Entry, job_of_record
from serinette.jobs.script import AsyncJobs, Call, Jobs
from serinette.jobs.submission import Submission, rq_fields_of

__all__ = [
    "AsyncJobs",
    "AttemptState",
    "Call",
    "Claimed",
    "Entry",
    "Finished",
    "Jobs",
    "Lease",
    "Outcome",
    "Refusal",
    "Seen",
    "Shrunk",
    "Submission",
    "Submitted",
    "calls",
    "finishing",
    "job_of_record",
    "rq_fields_of",
]
