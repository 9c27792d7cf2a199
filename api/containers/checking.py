"""What is checked of a container before it may enter the queue, beyond its own bounds."""

from __future__ import annotations

from collections.abc import Callable, Collection

from serinette.container import ContainerSpec, Input, allowed_by
from serinette.container_settings import ContainerSettings
from serinette.errors import InvalidSpec, NotFound, Unsupported
from serinette.job import Job, JobOptions
from serinette.names import upload_file_key, upload_record_key
from serinette.store import Store


def check_taken(settings: ContainerSettings) -> None:
    """See that containers run here at all.

    Raises:
        Unsupported: they do not.
    """
    if not settings.containers:
        raise Unsupported(
            "containers run on a cluster, and this deployment takes none: its operator must give it one and set "
            "SERINETTE_CONTAINERS with an allow-list of images (docs/containers.md); on a laptop, run the image "
            "with podman or docker"
        )


def check_container(tenant: str, spec: ContainerSpec, options: JobOptions, settings: ContainerSettings) -> None:
    """See that the operator allows what is asked.

    Raises:
        InvalidSpec: an image, secret or pool that is not published, or more than the tenant's ceilings; `field` names
            it.
    """
    if not allowed_by(spec.image, settings.containers_images):
        raise _unknown("image", spec.image, settings.containers_images)
    if spec.writable_root and not allowed_by(spec.image, settings.containers_writable_images):
        raise InvalidSpec(
            f"writable_root: image {spec.image} may not; write below /outputs or /tmp instead", field="writable_root"
        )
    for name in spec.secrets.values():
        if name not in settings.containers_secrets:
            raise _unknown("secrets", name, settings.containers_secrets)
    if spec.pool is not None and spec.pool not in settings.containers_machines:
        raise _unknown("pool", spec.pool, settings.containers_machines)
    settings.ceilings_of(tenant).check(spec, options.timeout_s)
    if spec.gpus > settings.containers_max_gpus:
        most = settings.containers_max_gpus
        raise InvalidSpec(f"gpus: all containers together may hold {most} here, not {spec.gpus}", field="gpus")


def check_inputs(tenant: str, spec: ContainerSpec, store: Store, find_job: Callable[[str], Job]) -> None:
    """See that the inputs are the tenant's own and there. Whatever is another's is answered as if it were not.

    Raises:
        InvalidSpec: one is not.
    """
    for each in spec.inputs:
        try:
            _check_input(tenant, each, store, find_job)
        except NotFound as error:
            source = each.artifact or each.upload or each.prefix
            raise InvalidSpec(f"inputs: {each.path}: there is no {source} of yours", field="inputs") from error


def _check_input(tenant: str, given: Input, store: Store, find_job: Callable[[str], Job]) -> None:
    root, _, rest = (given.prefix or "").partition("/")
    upload = given.upload or (rest.rstrip("/") if root == "uploads" else None)
    if upload:
        try:
            store.head(upload_record_key(tenant, upload))
        except NotFound:
            store.head(upload_file_key(tenant, upload))
        return
    job_id, _, index = (given.artifact or f"{rest.rstrip('/')}/").partition("/")
    job = find_job(job_id)
    if not job.status.ended:
        raise InvalidSpec(f"inputs: {given.path}: job {job_id} is {job.status}; wait for its end", field="inputs")
    if index and int(index) not in {song.index for song in (job.result.artifacts if job.result else ())}:
        raise NotFound(f"job {job_id} has no song {index}")


def _unknown(field: str, name: str, known: Collection[str]) -> InvalidSpec:
    published = f"allowed here are {', '.join(sorted(known))}" if known else "none is allowed here"
    return InvalidSpec(f"{field}: {name} is not allowed; {published}", field=field)
