"""Every error that Serinette raises on purpose.

    SerinetteError
    ├── ConfigurationError   the process refuses to start
    ├── RequestError         the caller can correct it; nothing was stored
    ├── Limited              a limit is reached; nothing was stored; `retry_after_s` says when to try again
    ├── Unavailable          try again; nothing was accepted
    ├── GenerationError      an attempt failed; `retryable` says whether another may succeed
    └── Interruption         not a failure: the attempt ends and does not count against the job

`code` is a closed vocabulary that clients can switch on, in HTTP problems, job records and events.
"""

from __future__ import annotations


class SerinetteError(Exception):
    """Something went wrong in Serinette itself.

    Root of the tree. The message says what was wrong, what is allowed and what to do.
    """

    code = "internal"
    retryable = False

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class ConfigurationError(SerinetteError):
    """A setting is missing or contradicts another."""

    code = "configuration"


class RequestError(SerinetteError):
    """The request is wrong; the caller can correct it."""

    code = "bad_request"


class InvalidSpec(RequestError):
    """A field of a spec or a query is out of bounds."""

    code = "invalid_spec"


class InvalidBatch(InvalidSpec):
    """Lines of a batch are wrong; nothing was stored."""

    code = "invalid_batch"
    lines: tuple[tuple[int, str | None, str], ...] = ()  # line from 1, field, message


class InvalidAudio(RequestError):
    """The bytes are not audio that can be decoded, or too long."""

    code = "invalid_audio"


class TooLarge(RequestError):
    """The body is larger than this deployment accepts."""

    code = "too_large"


class UnsupportedMediaType(RequestError):
    """The body's media type is not supported."""

    code = "unsupported_media_type"


class NotFound(RequestError):
    """No such thing for this tenant."""

    code = "not_found"


class UnknownPath(NotFound):
    """There is no such path."""

    code = "unknown_path"


class Conflict(RequestError):
    """The current state does not allow it."""

    code = "conflict"


class IdempotencyConflict(Conflict):
    """The Idempotency-Key was used with another spec."""

    code = "idempotency_conflict"


class NotFinished(Conflict):
    """The job has not ended yet."""

    code = "not_finished"


class Gone(RequestError):
    """The job ended without a song, or its files were erased."""

    code = "gone"


class Unsupported(RequestError):
    """The deployment or checkpoint does not support it."""

    code = "unsupported"


class Unauthorized(RequestError):
    """A valid key is required."""

    code = "unauthorized"


class Forbidden(RequestError):
    """A page or a name that this gateway does not answer to."""

    code = "forbidden"


class LaneNotAllowed(RequestError):
    """The tenant may not use this lane."""

    code = "lane_not_allowed"


class Limited(SerinetteError):
    """A limit is reached; nothing was stored. `retry_after_s` says when to try again, if known."""

    code = "limited"
    retryable = True

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class RateLimited(Limited):
    """The tenant sent more requests a minute than it may."""

    code = "rate_limited"


class LaneFull(Limited):
    """The lane has reached its limit of waiting jobs."""

    code = "lane_full"


class TooManyQueued(Limited):
    """The tenant has reached its limit of waiting jobs."""

    code = "too_many_queued"


class TooManyInFlight(Limited):
    """The tenant has reached its limit of unfinished jobs or batches."""

    code = "too_many_in_flight"


class GpuTimeSpent(Limited):
    """The tenant has used its GPU-seconds of the day."""

    code = "gpu_time_spent"


class Unavailable(SerinetteError):
    """A service that the request needs does not answer; nothing was accepted."""

    code = "unavailable"
    retryable = True


class QueueUnavailable(Unavailable):
    """Redis/Valkey does not answer."""

    code = "queue_unavailable"


class QueueFull(QueueUnavailable):
    """The queue's server has no room for new jobs."""

    code = "queue_full"


class StoreUnavailable(Unavailable):
    """The object store does not answer."""

    code = "store_unavailable"


class ClusterUnavailable(Unavailable):
    """The cluster's API server does not answer as expected. `status` is its HTTP status, 0 without a response."""

    code = "cluster_unavailable"

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class GenerationError(SerinetteError):
    """An attempt to generate failed."""

    code = "generation_failed"


class EngineCrashed(GenerationError):
    """The engine process ended during a song."""

    code = "engine_crashed"
    retryable = True


class EngineStalled(GenerationError):
    """The engine showed no progress within its deadline and was killed."""

    code = "engine_stalled"
    retryable = True


class EngineOutOfMemory(GenerationError):
    """The song does not fit into the device's memory."""

    code = "out_of_memory"


class JobTimeout(GenerationError):
    """The job ran longer than its `timeout_s`."""

    code = "timeout"


class WorkerLost(GenerationError):
    """The worker that held the job stopped its heartbeat."""

    code = "worker_lost"
    retryable = True


class Expired(GenerationError):
    """No worker began the job within its `start_deadline_s`."""

    code = "expired"


class PoolRemoved(GenerationError):
    """The job's pool was removed while it waited, and no other holds its model."""

    code = "pool_removed"


class InvalidOutput(GenerationError):
    """The model produced samples that are not finite, or none."""

    code = "invalid_output"


class ContainerFailed(GenerationError):
    """The container ended with an exit code that is not 0, or could not be started."""

    code = "container_failed"
    retryable = True


class ImageUnavailable(GenerationError):
    """The container's image cannot be pulled."""

    code = "image_unavailable"


class Unschedulable(GenerationError):
    """No node took the container in time."""

    code = "unschedulable"


class Interruption(SerinetteError):
    """The attempt ends and does not count against the job."""

    code = "interrupted"


class Canceled(Interruption):
    """The job's cancel flag is set."""

    code = "canceled"


class HandBack(Interruption):
    """The worker returns the job to the front of its lane."""

    code = "handed_back"
    retryable = True


class Superseded(Interruption):
    """Another attempt owns the job, or it has ended."""

    code = "superseded"


def of_code(code: str, message: str) -> SerinetteError:
    """The error that another process reported by its `code`; an unknown code becomes a plain GenerationError."""
    kinds: list[type[SerinetteError]] = [SerinetteError]
    for kind in kinds:
        if kind.code == code:
            return kind(message)
        kinds += kind.__subclasses__()
    return GenerationError(message)
