"""The presigned URLs that a container's pod gets for its inputs and outputs, and what it put by them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import BaseModel

from controller.containers.manifest import MAX_STEP_BYTES, Order
from serinette.container import ContainerSpec, Input, Output, is_file_name
from serinette.errors import InvalidSpec, NotFound
from serinette.job import Record
from serinette.jobs import Entry
from serinette.names import (
    manifest_key,
    output_key,
    record_key,
    song_prefix,
    upload_audio_key,
    upload_prefix,
)
from serinette.settings import ContainerSettings
from serinette.store import Store

_MOST_WARNINGS = 21


class _ListedOutput(BaseModel):
    name: str
    index: int
    sha256: str = ""


class _Manifest(BaseModel):
    """As controller/containers/steps.py writes it."""

    outputs: list[_ListedOutput] = []
    left_out: list[str] = []


def order_of(entry: Entry, attempt_id: str, spec: ContainerSpec, store: Store, settings: ContainerSettings) -> Order:
    """One attempt, its inputs and outputs signed for as long as it may take. `store` signs for where the pods are.

    Raises:
        InvalidSpec: an input is gone, or there are more than a pod's environment holds.
        StoreUnavailable: the store does not answer.
    """
    tenant, job_id = entry.tenant, entry.id
    life_s = entry.timeout_s + settings.containers_start_s + 2 * settings.containers_grace_s

    def signed(url: str | None) -> str:
        if url is None:
            raise InvalidSpec("this store signs no URLs, which containers need: the operator must take another")
        return url

    def put(key: str) -> str:
        return signed(store.sign_put(key, life_s))

    fetch = []
    for each in spec.inputs:
        try:
            files = list(_files_of(store, tenant, each))
        except NotFound as error:
            raise InvalidSpec(f"inputs: {each.path} is not in the store any more", field="inputs") from error
        fetch += [{"path": path, "url": signed(store.sign_get(key, life_s))} for path, key in files]
    if len(json.dumps(fetch)) > MAX_STEP_BYTES:
        raise InvalidSpec(f"inputs: {len(fetch)} files are too many for one container: pack them", field="inputs")
    upload = {
        "urls": [put(output_key(tenant, job_id, attempt_id, n)) for n in range(settings.containers_output_files)],
        "manifest_url": put(manifest_key(tenant, job_id, attempt_id)),
        "max_bytes": settings.containers_output_bytes,
    }
    return Order(job_id, tenant, attempt_id, entry.lane, spec, entry.timeout_s, tuple(fetch), upload)


def _files_of(store: Store, tenant: str, given: Input) -> Iterator[tuple[str, str]]:
    """Path below /inputs and object key of each file of an input. Keys are the tenant's own by how they are made."""
    if given.upload:
        yield given.path, upload_audio_key(tenant, given.upload)
    elif given.artifact:
        job_id, _, index = given.artifact.partition("/")
        keys = {song.index: song.key for song in _record(store, tenant, job_id).artifacts}
        if int(index) not in keys:
            raise NotFound(f"job {job_id} has no song {index}")
        yield given.path, keys[int(index)]
    else:
        root, name, _ = (given.prefix or "").split("/")
        if root == "songs":  # outputs of a container by the names that it gave them
            run = _record(store, tenant, name).run
            yield from ((f"{given.path}/{output.name}", output.key) for output in (run.outputs if run else ()))
        prefix = song_prefix(tenant, name) if root == "songs" else upload_prefix(tenant, name)
        for found in store.list(prefix):
            file = found.key.rpartition("/")[2]
            if "-output-" not in file:
                yield f"{given.path}/{file}", found.key


def _record(store: Store, tenant: str, job_id: str) -> Record:
    return Record.model_validate_json(store.get(record_key(tenant, job_id)))


def outputs_of(entry: Entry, attempt_id: str, store: Store, most: int) -> tuple[tuple[Output, ...], tuple[str, ...]]:
    """What an attempt left, at most so many files, and in words what was left out.

    Nothing that its manifest says is believed but names that are allowed and sizes that the store confirms.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    tenant, job_id = entry.tenant, entry.id
    try:
        listed = _Manifest.model_validate_json(store.get(manifest_key(tenant, job_id, attempt_id)))
    except NotFound:
        return (), ("its outputs were not put into the store in the time that they had",)
    except ValueError:
        return (), ("the manifest of its outputs cannot be read",)
    found: list[Output] = []
    warnings = [each[:300] for each in listed.left_out[:_MOST_WARNINGS]]
    for each in listed.outputs[:most]:
        if not is_file_name(each.name) or not 0 <= each.index < most:
            warnings.append(f"{ascii(each.name)[:200]} may not be the name of an output")
            continue
        key = output_key(tenant, job_id, attempt_id, each.index)
        try:
            size_bytes = store.head(key).size_bytes
        except NotFound:
            warnings.append(f"{each.name} was not put into the store")
            continue
        found.append(Output(name=each.name, key=key, size_bytes=size_bytes, sha256=each.sha256))
    return tuple(found), tuple(warnings)
