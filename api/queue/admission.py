"""What is checked of a spec before it may enter the queue, beyond its own bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from api.settings import GatewaySettings
from api.targets import Targets
from serinette.errors import InvalidSpec, NotFound, Unsupported
from serinette.job import Job, JobStatus
from serinette.names import upload_record_key
from serinette.presence import Presence
from serinette.spec import GenerationSpec
from serinette.store import Store


def pool_for_model(model: str, workers: Iterable[Presence]) -> str:
    """The pool whose workers hold `model`.

    Raises:
        InvalidSpec: no worker that is up holds it.
    """
    pools = {worker.model.name: worker.pool for worker in workers if worker.model}
    if model in pools:
        return pools[model]
    published = f"published here are {', '.join(sorted(pools))}" if pools else "no worker is up to tell of any"
    raise InvalidSpec(f"model: {model} is not known; {published}; leave it out for the default", field="model")


def check_audio(tenant: str, spec: GenerationSpec, store: Store, find_job: Callable[[str], Job]) -> None:
    """See that what the spec works on exists.

    Raises:
        InvalidSpec: an upload that was never completed, or a song that does not exist; `field` names it.
    """
    for field, audio_id in (("source_audio", spec.source_audio), ("reference_audio", spec.reference_audio)):
        if audio_id is None:
            continue
        try:
            if "/" in audio_id:
                _check_song(field, audio_id, find_job)
            else:
                store.head(upload_record_key(tenant, audio_id))
        except NotFound as error:
            message = f"{field}: there is no {audio_id}; upload it with POST /v1/uploads, or name {{job_id}}/{{index}}"
            raise InvalidSpec(message, field=field) from error


def check_webhook(tenant: str, url: str | None, settings: GatewaySettings, targets: Targets) -> None:
    """See that the job's end can be told where it asks for.

    Raises:
        InvalidSpec, Unavailable: see Targets.check.
        Unsupported: there is no secret to sign this tenant's webhooks with.
    """
    if url is None:
        return
    if not settings.signs_for(tenant):
        raise Unsupported(
            "webhook: this deployment delivers none; its operator must set SERINETTE_WEBHOOK_SECRET", field="webhook"
        )
    targets.check(url)


def _check_song(field: str, audio_id: str, find_job: Callable[[str], Job]) -> None:
    job_id, _, index = audio_id.partition("/")
    job = find_job(job_id)
    if job.status is not JobStatus.SUCCEEDED or job.result is None:
        raise InvalidSpec(f"{field}: job {job_id} is {job.status} and has no song to work on", field=field)
    if int(index) not in {artifact.index for artifact in job.result.artifacts}:
        raise NotFound(f"job {job_id} has no song {index}")
