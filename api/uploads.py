"""Uploads: bounded in size, decoded to check that they are audio, then stored. Never whole in memory."""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import anyio
from pydantic import AwareDatetime, BaseModel, Field
from starlette.datastructures import UploadFile

from api.settings import GatewaySettings
from api.turns import Threads, Turns
from serinette.errors import InvalidAudio, InvalidSpec, Limited, NotFound, TooLarge, Unavailable, Unsupported
from serinette.job import Upload, UploadedFile, now
from serinette.names import upload_audio_key, upload_file_key, upload_prefix, upload_record_key
from serinette.probe import prove_audio
from serinette.store import Store, StoredObject

_T = TypeVar("_T")
_Given = TypeVarTuple("_Given")

_CHUNK_BYTES = 1024 * 1024
# A check decodes the whole file: more of them at once would only slow each other down. One tenant's leave a place free.
_CHECKS = 3
# Uploads of one tenant that are under way, each of which may fill the disk with a whole file; and of all tenants.
UPLOADS_OF_TENANT = 32
_UPLOADS = 128
# Bodies with audio in base64, which take several times their size in memory; of one tenant at most half.
_IN_MEMORY = 4
_MANY_CHECKS = partial(Unavailable, "too many of this tenant's uploads wait to be decoded; try again")
_MANY_UPLOADS = partial(
    Limited,
    f"uploads: {UPLOADS_OF_TENANT} of one tenant may be under way at once; wait for some to end",
    retry_after_s=5,
)
# The directory of an upload under way.
PREFIX = "serinette-upload-"


class PresignedUpload(BaseModel):
    """Where to PUT the bytes; then POST `/v1/uploads/{id}/complete`."""

    id: str
    put_url: str = Field(description="Takes one HTTP PUT of the audio's bytes.")
    expires_at: AwareDatetime


class Uploads:
    """Uploads of all tenants. Every method raises StoreUnavailable when the store does not answer."""

    def __init__(self, store: Store, settings: GatewaySettings, store_threads: Threads) -> None:
        self._store = store
        self._store_threads = store_threads
        self._settings = settings
        self._checks = Threads(_CHECKS, _CHECKS - 1, _MANY_CHECKS)
        self.in_memory = Turns(_IN_MEMORY, _IN_MEMORY // 2, _MANY_CHECKS)
        self._open = Turns(_UPLOADS, UPLOADS_OF_TENANT, _MANY_UPLOADS, most_waiting=0)

    async def take(self, tenant: str, chunks: AsyncIterator[bytes]) -> Upload:
        """Store the body of a request if it is audio.

        Raises:
            TooLarge, InvalidAudio: it is not stored.
        """
        upload_id = _new_id()
        async with self._file(tenant) as path:
            size_bytes, sha256 = await self._spool(chunks, path)
            upload = await self._checked(tenant, upload_id, path, size_bytes, sha256)
            await self._store.put_stream(upload_audio_key(tenant, upload_id), _read(path), upload.size_bytes)
        await self._record(tenant, upload_record_key(tenant, upload_id), upload)
        return upload

    async def take_file(self, tenant: str, file: UploadFile) -> Upload:
        """Store a file of a form; see `take`."""
        return await self.take(tenant, _chunks(file))

    async def take_any(self, tenant: str, chunks: AsyncIterator[bytes]) -> UploadedFile:
        """Store the body of a request, of any type: only containers can use it.

        Raises:
            TooLarge: it is not stored.
        """
        upload_id = _new_id()
        async with self._file(tenant) as path:
            size_bytes, sha256 = await self._spool(chunks, path)
            await self._store.put_stream(upload_audio_key(tenant, upload_id), _read(path), size_bytes)
        kept = UploadedFile(id=upload_id, size_bytes=size_bytes, sha256=sha256, created_at=now())
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
        try:
            return await self.get(tenant, upload_id)
        except NotFound:
            stored = await self._put_by_client(tenant, upload_id)
        try:
            if stored.size_bytes > self._settings.max_upload_bytes:
                raise TooLarge(
                    f"the upload has {stored.size_bytes} bytes; {self._settings.max_upload_bytes} are allowed"
                )
            async with self._file(tenant) as path:
                size_bytes, sha256 = await self._spool(self._store.stream(stored.key), path)
                upload = await self._checked(tenant, upload_id, path, size_bytes, sha256)
        except (TooLarge, InvalidAudio):
            await self._in_thread(tenant, self._store.delete_prefix, upload_prefix(tenant, upload_id))
            raise
        await self._record(tenant, upload_record_key(tenant, upload_id), upload)
        return upload

    async def get(self, tenant: str, upload_id: str) -> Upload:
        """The record of an upload that is audio.

        Raises:
            NotFound: this tenant has no such upload, or it was never completed.
        """
        try:
            raw = await self._in_thread(tenant, self._store.get, upload_record_key(tenant, upload_id))
        except NotFound as error:
            raise NotFound(f"there is no upload {upload_id}, or it was never completed") from error
        return Upload.model_validate_json(raw)

    async def look(self, tenant: str, upload_id: str) -> Upload | UploadedFile:
        """The record of any upload; raises as `get` does."""
        try:
            return await self.get(tenant, upload_id)
        except NotFound:
            try:
                raw = await self._in_thread(tenant, self._store.get, upload_file_key(tenant, upload_id))
            except NotFound:
                pass
            else:
                return UploadedFile.model_validate_json(raw)
            raise

    async def erase(self, tenant: str, upload_id: str) -> None:
        """Erase an upload. Jobs that still wait to work on it will fail.

        Raises:
            NotFound: this tenant has no such upload.
        """
        if not await self._in_thread(tenant, self._store.delete_prefix, upload_prefix(tenant, upload_id)):
            raise NotFound(f"there is no upload {upload_id}")

    async def _put_by_client(self, tenant: str, upload_id: str) -> StoredObject:
        try:
            return await self._in_thread(tenant, self._store.head, upload_audio_key(tenant, upload_id))
        except NotFound as error:
            raise NotFound(f"upload {upload_id}: nothing was PUT to its put_url yet") from error

    @asynccontextmanager
    async def _file(self, tenant: str) -> AsyncIterator[Path]:
        """A path for an upload's bytes, which are gone afterwards."""
        async with self._open.of(tenant):
            with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
                yield Path(directory) / "file"

    async def _in_thread(self, tenant: str, act: Callable[[*_Given], _T], *given: *_Given) -> _T:
        return await self._store_threads.run(tenant, partial(act, *given))

    async def _spool(self, chunks: AsyncIterator[bytes], path: Path) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        async with await anyio.open_file(path, "wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > self._settings.max_upload_bytes:
                    raise TooLarge(f"it is longer than the {self._settings.max_upload_bytes} bytes allowed")
                digest.update(chunk)
                await file.write(chunk)
        return size, digest.hexdigest()

    async def _checked(self, tenant: str, upload_id: str, path: Path, size_bytes: int, sha256: str) -> Upload:
        if size_bytes == 0:
            raise InvalidSpec("file: it is empty; send the bytes of the audio", field="file")
        info = await self._checks.run(
            tenant, partial(prove_audio, path, max_duration_s=self._settings.max_upload_duration_s)
        )
        return Upload(id=upload_id, size_bytes=size_bytes, sha256=sha256, created_at=now(), **dict(info))

    async def _record(self, tenant: str, key: str, upload: BaseModel) -> None:
        await self._in_thread(tenant, self._store.put, key, upload.model_dump_json().encode(), "application/json")


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk


async def _read(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while chunk := await file.read(_CHUNK_BYTES):
            yield chunk


def _new_id() -> str:
    return f"upload-{uuid.uuid4().hex}"
