"""What goes into a container's pod and what came out of it: presigned URLs, and the outputs that were put by them."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pydantic import BaseModel

from controller.containers.manifest import MAX_PLAN_BYTES, Order
from serinette.container import ContainerSpec, Input, Output, Run, is_file_name
from serinette.container_settings import ContainerSettings
from serinette.errors import InvalidSpec, NotFound
from serinette.job import Record
from serinette.jobs import Entry
from serinette.names import (
    log_key,
    manifest_key,
    output_key,
    record_key,
    song_prefix,
    upload_audio_key,
    upload_prefix,
)
from serinette.store import Store


class _ToldOutput(BaseModel):
    name: str
    index: int
    sha256: str = ""


class _Told(BaseModel):
    """The manifest, as serinette/carry.py writes it."""

    outputs: list[_ToldOutput] = []
    left_out: list[str] = []


class Carrying:
    """Signs and reads. `store` signs for where the pods are."""

    def __init__(self, store: Store, settings: ContainerSettings) -> None:
        self._store = store
        self._settings = settings

    def order(self, entry: Entry, attempt_id: str, spec: ContainerSpec) -> Order:
        """One attempt, its inputs and outputs signed for as long as it may take.

        Raises:
            InvalidSpec: an input is gone, or there are more than a pod can be told of.
            StoreUnavailable: the store does not answer.
        """
        tenant, job_id, timeout_s = entry.tenant, entry.id, entry.timeout_s
        life_s = timeout_s + self._settings.containers_start_s + 2 * self._settings.containers_grace_s
        fetch = [
            {"path": path, "url": self._signed(self._store.sign_get(key, life_s))}
            for path, key in self._inputs(tenant, spec)
        ]
        if len(json.dumps(fetch)) > MAX_PLAN_BYTES:
            raise InvalidSpec(f"inputs: {len(fetch)} files are too many for one container: pack them", field="inputs")
        keys = [output_key(tenant, job_id, attempt_id, n) for n in range(self._settings.containers_output_files)]
        upload = {
            "urls": [self._signed(self._store.sign_put(key, life_s)) for key in keys],
            "manifest_url": self._signed(self._store.sign_put(manifest_key(tenant, job_id, attempt_id), life_s)),
            "max_bytes": self._settings.containers_output_bytes,
        }
        return Order(job_id, tenant, attempt_id, entry.lane, spec, timeout_s, tuple(fetch), upload)

    def _inputs(self, tenant: str, spec: ContainerSpec) -> Iterator[tuple[str, str]]:
        """Path below /inputs and object key of each file. Keys are the tenant's own by how they are made."""
        for each in spec.inputs:
            try:
                yield from self._input(tenant, each)
            except NotFound as error:
                raise InvalidSpec(f"inputs: {each.path} is not in the store any more", field="inputs") from error

    def _input(self, tenant: str, given: Input) -> Iterator[tuple[str, str]]:
        if given.upload:
            yield given.path, upload_audio_key(tenant, given.upload)
        elif given.artifact:
            job_id, _, index = given.artifact.partition("/")
            record = Record.model_validate_json(self._store.get(record_key(tenant, job_id)))
            keys = {song.index: song.key for song in record.artifacts}
            if int(index) not in keys:
                raise NotFound(f"job {job_id} has no song {index}")
            yield given.path, keys[int(index)]
        else:
            yield from self._below(tenant, given)

    def _below(self, tenant: str, given: Input) -> Iterator[tuple[str, str]]:
        root, name, _ = (given.prefix or "").split("/")
        if root == "songs":  # outputs of a container by the names that it gave them
            record = Record.model_validate_json(self._store.get(record_key(tenant, name)))
            for output in record.run.outputs if record.run else ():
                yield f"{given.path}/{output.name}", output.key
        prefix = song_prefix(tenant, name) if root == "songs" else upload_prefix(tenant, name)
        for found in self._store.list(prefix):
            file = found.key.rpartition("/")[2]
            if "-output-" not in file:
                yield f"{given.path}/{file}", found.key

    @staticmethod
    def _signed(url: str | None) -> str:
        if url is None:
            raise InvalidSpec("this store signs no URLs, which containers need: the operator must take another")
        return url

    def collect(self, order_of: tuple[str, str, str], exit_code: int | None, log: bytes) -> Run:
        """What an attempt (tenant, job id, attempt id) left: its outputs by the manifest. Its log is put away.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        tenant, job_id, attempt_id = order_of
        outputs, warnings = self._outputs(tenant, job_id, attempt_id)
        key = log_key(tenant, job_id, attempt_id) if log else None
        if key:
            self._store.put(key, log, "text/plain; charset=utf-8")
        return Run(exit_code=exit_code, outputs=outputs, log_key=key, log_size_bytes=len(log), warnings=tuple(warnings))

    def _outputs(self, tenant: str, job_id: str, attempt_id: str) -> tuple[tuple[Output, ...], list[str]]:
        """Nothing that the manifest says is believed but names that may be such and sizes that the store confirms."""
        key = manifest_key(tenant, job_id, attempt_id)
        try:
            told = _Told.model_validate_json(self._store.get(key))
        except NotFound:
            return (), ["its outputs were not put into the store in the time that they had"]
        except ValueError:
            return (), ["what was said of its outputs cannot be read"]
        found: list[Output] = []
        warnings = [each[:300] for each in told.left_out[:21]]
        for each in told.outputs[: self._settings.containers_output_files]:
            name, index = each.name, each.index
            if not is_file_name(name) or not 0 <= index < self._settings.containers_output_files:
                warnings.append(f"{ascii(name)[:200]} may not be the name of an output")
                continue
            at = output_key(tenant, job_id, attempt_id, index)
            try:
                size_bytes = self._store.head(at).size_bytes
            except NotFound:
                warnings.append(f"{name} was not put into the store")
                continue
            found.append(Output(name=name, key=at, size_bytes=size_bytes, sha256=each.sha256))
        return tuple(found), warnings

    def forget_manifest(self, tenant: str, job_id: str, attempt_id: str) -> None:
        """What it says is in the record."""
        self._store.delete(manifest_key(tenant, job_id, attempt_id))
