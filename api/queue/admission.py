"""Checks of a spec before it is queued, beyond its own validation."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable

from api.settings import GatewaySettings
from serinette.errors import InvalidSpec, NotFound, Unsupported
from serinette.job import Job, JobStatus, Upload
from serinette.names import upload_record_key
from serinette.pools import of_name, serving
from serinette.presence import Presence
from serinette.spec import GenerationSpec, Task
from serinette.store import Store
from serinette.webhook_targets import Targets

_AUDIO_CODE = re.compile(r"<\|audio_code_\d+\|>")
# Shorter songs are not checked here; a worker that cannot generate them refuses them itself.
_ALWAYS_FITS_S = 60.0
_WINDOWED = {Task.REPAINT, Task.LEGO}


def pool_for(model: str | None, settings: GatewaySettings, workers: Iterable[Presence]) -> str:
    """The pool for a job: the published pool that serves `model`, even without workers; if no pools are published, that
    of a running worker which has loaded it. Without a model, the default pool.

    Raises:
        InvalidSpec: no pool and no worker serves the model.
    """
    if model is None:
        return settings.pool
    if settings.pools:
        pool, models = serving(settings.pools, model, settings.pool), {each.published for each in settings.pools}
    else:
        held = {worker.model.name: worker.pool for worker in workers if worker.model}
        pool, models = held.get(model), set(held)
    if pool is not None:
        return pool
    published = f"published here are {', '.join(sorted(models))}" if models else "no worker is up"
    raise InvalidSpec(f"model: {model} is not known; {published}; leave it out for the default", field="model")


def timeout_for(requested_s: int | None, pool: str, settings: GatewaySettings) -> int:
    """Timeout of a job in this pool, in seconds: the requested one, or the default capped by the pool's longest job.

    Raises:
        InvalidSpec: it is longer than a draining worker of this pool may run.
    """
    facts = of_name(settings.pools, pool)
    longest_s = facts.longest_s if facts else None
    if longest_s is None:
        return requested_s or settings.job_timeout_s
    if requested_s is not None and requested_s > longest_s:
        raise InvalidSpec(
            f"timeout_s: pool {pool} lets a job run for {longest_s} s at most, since a draining worker "
            f"gets no longer; ask for {longest_s} or less, or leave it out",
            field="timeout_s",
        )
    return requested_s or min(settings.job_timeout_s, longest_s)


def check_length(spec: GenerationSpec, pool: str, workers: Iterable[Presence]) -> None:
    """Check that a running worker of the pool can generate a long song; without running workers it is accepted.

    Raises:
        InvalidSpec: it is longer than every running worker can generate.
    """
    if spec.duration_s <= _ALWAYS_FITS_S or spec.source_audio:
        return
    models = [worker.model for worker in workers if worker.pool == pool and worker.model]
    longest = max(models, key=lambda model: model.max_duration_s, default=None)
    if longest and spec.duration_s > longest.max_duration_s:
        raise InvalidSpec(
            f"duration_s: {longest.name} generates {longest.max_duration_s:g} s at most on the workers of pool {pool}, "
            f"by its own limits or their memory's, and {spec.duration_s:g} s were asked for; ask for less",
            field="duration_s",
        )


def check_lora_and_codes(spec: GenerationSpec, loras: Collection[str] = ()) -> None:
    """Check the LoRA and the audio codes of a spec.

    Raises:
        InvalidSpec: the LoRA is not published, or the audio codes contain no code; `field` names it.
    """
    if spec.lora is not None and spec.lora not in loras:
        known = f"published here are {', '.join(sorted(loras))}" if loras else "none is published here"
        raise InvalidSpec(f"lora: {spec.lora} is not known; {known}; leave it out for none", field="lora")
    if spec.audio_codes and spec.audio_codes.strip() and not _AUDIO_CODE.search(spec.audio_codes):
        raise InvalidSpec(
            "audio_codes: holds no <|audio_code_N|>; send such codes, or leave it out", field="audio_codes"
        )


def check_audio(tenant: str, spec: GenerationSpec, store: Store, find_job: Callable[[str], Job]) -> None:
    """Check that the source and reference audio exist, and that the source is long enough for the repaint window.

    Raises:
        InvalidSpec: the upload was never completed, the song does not exist, or the window begins after the source's
            end; `field` names it.
    """
    for field, audio_id in (("source_audio", spec.source_audio), ("reference_audio", spec.reference_audio)):
        if audio_id is None:
            continue
        try:
            if "/" in audio_id:
                duration_s = _song_duration_s(field, audio_id, find_job)
            else:
                duration_s = Upload.model_validate_json(store.get(upload_record_key(tenant, audio_id))).duration_s
        except NotFound as error:
            message = f"{field}: there is no {audio_id}; upload it with POST /v1/uploads, or name {{job_id}}/{{index}}"
            raise InvalidSpec(message, field=field) from error
        if field == "source_audio":
            _check_window(spec, duration_s)


def check_webhook(tenant: str, url: str | None, settings: GatewaySettings, targets: Targets) -> None:
    """Check that the job's end can be delivered to its webhook.

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
    targets.check(url, tenant)


def _check_window(spec: GenerationSpec, duration_s: float) -> None:
    start_s, end_s = spec.repaint_start_s, spec.repaint_end_s
    if spec.task not in _WINDOWED or start_s is None or start_s < duration_s:
        return
    if spec.task is Task.REPAINT and end_s is not None and end_s > duration_s:
        return  # it continues the song
    also = "; with a repaint_end_s beyond it the song is continued" if spec.task is Task.REPAINT else ""
    raise InvalidSpec(
        f"repaint_start_s: must be less than the source's length, {duration_s:.2f} s{also}", field="repaint_start_s"
    )


def _song_duration_s(field: str, audio_id: str, find_job: Callable[[str], Job]) -> float:
    job_id, _, index = audio_id.partition("/")
    job = find_job(job_id)
    if job.status is not JobStatus.SUCCEEDED or job.result is None:
        raise InvalidSpec(f"{field}: job {job_id} is {job.status} and has no song to work on", field=field)
    for artifact in job.result.artifacts:
        if artifact.index == int(index):
            return artifact.duration_s
    raise NotFound(f"job {job_id} has no song {index}")
