"""Uploads: received to the disk, decoded to check that they are audio, then stored. Never whole in memory."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from typing import TypeVar, TypeVarTuple

from pydantic import AwareDatetime, BaseModel, Field
from starlette.datastructures import UploadFile

from api.bodies import Bodies, Body
from api.settings import GatewaySettings
from api.turns import Threads
from serinette.errors import InvalidAudio, InvalidSpec, NotFound, TooLarge, Unavailable, Unsupported
from serinette.job import Upload, UploadedFile, now
from serinette.names import upload_audio_key, upload_file_key, upload_prefix, upload_record_key
from serinette.probe import prove_audio
from serinette.store import Store

_T = TypeVar("_T")
_Kind = TypeVar("_Kind", Upload, UploadedFile)
_Given = TypeVarTuple("_Given")

_CHUNK_BYTES = 1024 * 1024
# A check decodes the whole file: more of them at once would only slow each other down. One tenant's leave a place free.
_CHECKS = 3
_MANY_CHECKS = partial(Unavailable, "too many of this tenant's uploads wait to be decoded; try again")


class PresignedUpload(BaseModel):
    """Where to PUT the bytes; then POST `/v1/uploads/{id}/complete`."""

    id: str
    put_url: str = Field(description="Takes one HTTP PUT of the audio's bytes.")
    expires_at: AwareDatetime


class Uploads:
    """Uploads of all tenants. Every method raises StoreUnavailable when the store does not answer."""

    def __init__(self, store: Store, settings: GatewaySettings, store_threads: Threads, bodies: Bodies) -> None:
        self._store = store
        self._store_threads = store_threads
        self._settings = settings
        self._checks = Threads(_CHECKS, _CHECKS - 1, _MANY_CHECKS)
        self._bodies = bodies

    async def take(self, tenant: str, chunks: AsyncIterator[bytes], key: str | None = None) -> Upload:
        """Store the body of a request if it is audio; with an Idempotency-Key the same audio gets the same id.

        Raises:
            TooLarge, InvalidAudio: it is not stored.
        """
        async with self._bodies.received(tenant, chunks, self._settings.max_upload_bytes) as body:
            upload_id = _new_id(key and f"{key} {body.sha256}")
            upload = await self._checked(tenant, upload_id, body)
            await self._store.put_stream(
                upload_audio_key(tenant, upload_id), self._bodies.pieces(body), body.size_bytes
            )
        await self._record(tenant, upload_record_key(tenant, upload_id), upload)
        return upload

    async def take_file(self, tenant: str, file: UploadFile, key: str | None = None) -> Upload:
        """Store a file of a form; see `take`."""
        return await self.take(tenant, _chunks(file), key)

    async def take_any(self, tenant: str, chunks: AsyncIterator[bytes]) -> UploadedFile:
        """Store the body of a request, of any type: only containers can use it.

        Raises:
            TooLarge: it is not stored.
        """
        upload_id = _new_id()
        async with self._bodies.received(tenant, chunks, self._settings.max_upload_bytes) as body:
            await self._store.put_stream(
                upload_audio_key(tenant, upload_id), self._bodies.pieces(body), body.size_bytes
            )
        kept = UploadedFile(id=upload_id, size_bytes=body.size_bytes, sha256=body.sha256, created_at=now())
        await self._record(tenant, upload_file_key(tenant, upload_id), kept)
        return kept

    async def presign(self, tenant: str) -> PresignedUpload:
        """A URL to PUT the bytes directly into the store; `complete` then checks them.

        Raises:
            Unsupported: this deployment's store gives no presigned URLs.
        """
        upload_id = _new_id()
        key = upload_audio_key(tenant, upload_id)
        url = await self._in_thread(tenant, self._store.sign_put, key, self._settings.presign_s)
        if url is None:
            raise Unsupported("this deployment's store gives no presigned URLs; send the bytes with POST /v1/uploads")
        expires_at = now() + timedelta(seconds=self._settings.presign_s)
        return PresignedUpload(id=upload_id, put_url=url, expires_at=expires_at)

    async def complete(self, tenant: str, upload_id: str) -> Upload:
        """Check the bytes that the client PUT into the store. Idempotent.

        Raises:
            NotFound: nothing was put there.
            TooLarge, InvalidAudio: the object was erased.
        """
        if known := await self._recorded(Upload, tenant, upload_record_key(tenant, upload_id)):
            return known
        try:
            stored = await self._in_thread(tenant, self._store.head, upload_audio_key(tenant, upload_id))
        except NotFound as error:
            raise NotFound(f"upload {upload_id}: nothing was PUT to its put_url yet") from error
        try:
            if stored.size_bytes > self._settings.max_upload_bytes:
                raise TooLarge(
                    f"the upload has {stored.size_bytes} bytes; {self._settings.max_upload_bytes} are allowed"
                )
            stream = self._store.stream(stored.key)
            async with self._bodies.received(tenant, stream, self._settings.max_upload_bytes) as body:
                upload = await self._checked(tenant, upload_id, body)
        except (TooLarge, InvalidAudio):
            await self._in_thread(tenant, self._store.delete_prefix, upload_prefix(tenant, upload_id))
            raise
        await self._record(tenant, upload_record_key(tenant, upload_id), upload)
        return upload

    async def look(self, tenant: str, upload_id: str) -> Upload | UploadedFile:
        """The record of an upload.

        Raises:
            NotFound: this tenant has no such upload, or it was never completed.
        """
        found = await self._recorded(Upload, tenant, upload_record_key(tenant, upload_id))
        found_file = found or await self._recorded(UploadedFile, tenant, upload_file_key(tenant, upload_id))
        if found_file is None:
            raise NotFound(f"there is no upload {upload_id}, or it was never completed")
        return found_file

    async def _recorded(self, kind: type[_Kind], tenant: str, key: str) -> _Kind | None:
        try:
            return kind.model_validate_json(await self._in_thread(tenant, self._store.get, key))
        except NotFound:
            return None

    async def erase(self, tenant: str, upload_id: str) -> None:
        """Erase an upload. Jobs that still wait to work on it will fail.

        Raises:
            NotFound: this tenant has no such upload.
        """
        if not await self._in_thread(tenant, self._store.delete_prefix, upload_prefix(tenant, upload_id)):
            raise NotFound(f"there is no upload {upload_id}")

    async def _in_thread(self, tenant: str, act: Callable[[*_Given], _T], *given: *_Given) -> _T:
        return await self._store_threads.run(tenant, partial(act, *given))

    async def _checked(self, tenant: str, upload_id: str, body: Body) -> Upload:
        if body.size_bytes == 0:
            raise InvalidSpec("file: it is empty; send the bytes of the audio", field="file")
        info = await self._checks.run(
            tenant, partial(prove_audio, body.path, max_duration_s=self._settings.max_upload_duration_s)
        )
        return Upload(id=upload_id, size_bytes=body.size_bytes, sha256=body.sha256, created_at=now(), **dict(info))

    async def _record(self, tenant: str, key: str, upload: BaseModel) -> None:
        await self._in_thread(tenant, self._store.put, key, upload.model_dump_json().encode(), "application/json")


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk


def _new_id(of: str | None = None) -> str:
    return f"upload-{(uuid.uuid5(uuid.NAMESPACE_URL, of) if of else uuid.uuid4()).hex}"
