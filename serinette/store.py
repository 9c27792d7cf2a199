"""The object store of artifacts: a directory, S3, GCS or Azure, by obstore."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store

from serinette.errors import ConfigurationError, NotFound, RequestError, StoreUnavailable, TooLarge
from serinette.settings import SharedSettings

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

CHUNK_BYTES = 1024 * 1024
SENT_BYTES = 256 * 1024
# S3 refuses parts below 5 MiB; two in flight bound the memory of one transfer.
PART_BYTES = 5 * 1024 * 1024
PARTS_IN_FLIGHT = 2

# An endpoint that refuses, cannot be reached or does not answer fails within about ten seconds.
_RETRY: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=6),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
# `timeout` covers a whole body, which takes long for a slow client; `read_timeout` bounds a silent server.
_CLIENT: ClientConfig = {"connect_timeout": "3s", "read_timeout": "10s", "timeout": "1h"}
_ABORT_TIMEOUT_S = 10
# Of a directory's disk: a song or two. With less, no job that is taken could be kept.
_LEAST_FREE_BYTES = 64 * 1024**2
# The system's words for ENOSPC, which obstore passes on.
_NO_SPACE = "No space left on device"

# Segments of keys from serinette/names.py, without special characters of file systems or URLs.
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_SIGNING = (S3Store, GCSStore, AzureStore)
_BUCKETS: dict[str, type[S3Store | GCSStore | AzureStore]] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Metadata of one object."""

    key: str
    size_bytes: int
    etag: str | None
    modified: datetime


class Store:
    """One bucket or directory, under one prefix.

    Every method raises RequestError for a key that serinette/names.py cannot make, and StoreUnavailable (retryable)
    when the store does not answer within about ten seconds, has no such bucket or refuses our credentials.
    """

    def __init__(self, store: ObjectStore, public: S3Store | GCSStore | AzureStore | None = None) -> None:
        self._store = store
        self._public = public

    @classmethod
    def open(cls, settings: SharedSettings, credentials: Mapping[str, str] | None = None) -> Store:
        """Open the store of `settings`; a directory is created, a bucket is not. obstore finds the credentials in the
        environment; `credentials` are such variables (AWS_ACCESS_KEY_ID, ...) that win over it.

        Raises:
            ConfigurationError: the URL is not supported, or the directory cannot be created.
        """
        store = _connect(settings.store_url, settings.store_endpoint, credentials or {})
        if settings.store_public_endpoint is None or not isinstance(store, _SIGNING):
            return cls(store)
        public = _connect(settings.store_url, settings.store_public_endpoint, credentials or {})
        return cls(store, public if isinstance(public, _SIGNING) else None)

    def ping(self) -> None:
        """Check that the store answers, by one short listing, and that a directory's disk has room."""
        if full := self.full_disk():
            raise StoreUnavailable(full)
        with _own_errors("a ping", missing=StoreUnavailable):
            next(iter(obstore.list(self._store, "ping", chunk_size=1)), None)

    def full_disk(self) -> str | None:
        """That a directory's disk is full, in words; None if it is not, or is another kind of store."""
        if isinstance(self._store, LocalStore) and shutil.disk_usage(str(self._store.prefix)).free < _LEAST_FREE_BYTES:
            return _disk_full("the store's directory", self._store.prefix)
        return None

    def put(self, key: str, data: bytes | Path, content_type: str | None = None) -> None:
        """Write an object, whole or not at all; an older one of this key is replaced."""
        # A directory cannot store a content type, and obstore raises an error for it.
        attributes = {"Content-Type": content_type} if content_type and isinstance(self._store, _SIGNING) else None
        with _own_errors(key, missing=StoreUnavailable):
            obstore.put(
                self._store,
                _checked(key),
                data,
                attributes=attributes,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_IN_FLIGHT,
            )

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; of many callers exactly one gets True."""
        with _own_errors(key, missing=StoreUnavailable):
            try:
                obstore.put(self._store, _checked(key), data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def get(self, key: str) -> bytes:
        """Read a small object. Raises NotFound."""
        with _own_errors(key):
            return obstore.get(self._store, _checked(key)).bytes().to_bytes()

    def head(self, key: str) -> StoredObject:
        """Size, ETag and age. Raises NotFound."""
        with _own_errors(key):
            return _stored(obstore.head(self._store, _checked(key)))

    def download(self, key: str, path: Path, max_bytes: int | None = None, span: tuple[int, int] | None = None) -> None:
        """Write an object's bytes to `path`, a chunk at a time; a `span` of them to its place in a file that exists.

        Raises:
            NotFound: there is no such object.
            TooLarge: it has more than `max_bytes`.
        """
        with _own_errors(key):
            found = obstore.get(self._store, _checked(key), options={"range": span} if span else None)
            if max_bytes is not None and found.meta["size"] > max_bytes:
                raise TooLarge(f"{key} has {found.meta['size']} bytes, more than {max_bytes}")
            chunks = found.stream(CHUNK_BYTES)
        with path.open("r+b" if span else "wb") as file:
            file.seek(span[0] if span else 0)
            while chunk := self._next(key, chunks):
                file.write(chunk)

    @staticmethod
    def _next(key: str, chunks: Iterator[bytes]) -> bytes | None:
        with _own_errors(key):
            return next(chunks, None)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """All objects under `prefix`, unordered."""
        with _own_errors(prefix, missing=StoreUnavailable):
            for found in obstore.list(self._store, _checked(prefix.rstrip("/"))):
                yield from map(_stored, found)

    def delete(self, key: str) -> None:
        """Delete an object if it exists."""
        with _own_errors(key):
            try:
                obstore.delete(self._store, _checked(key))
            except FileNotFoundError:
                return

    def delete_prefix(self, prefix: str) -> int:
        """Delete all objects under `prefix`; returns their number."""
        count = 0
        with _own_errors(prefix):
            for found in obstore.list(self._store, _checked(prefix.rstrip("/"))):
                keys = [meta["path"] for meta in found]
                count += len(keys)
                try:
                    obstore.delete(self._store, keys)
                except FileNotFoundError:  # another process deleted one meanwhile; delete the rest one by one
                    for key in keys:
                        self.delete(key)
        return count

    def sign_get(self, key: str, expires_s: int) -> str | None:
        """Presigned URL to GET (not HEAD) the object for `expires_s`; None if this store gives none.

        It answers with the content type given to `put`: obstore can sign neither another one nor a file name.
        """
        return self._sign("GET", key, expires_s)

    def sign_put(self, key: str, expires_s: int) -> str | None:
        """Presigned URL to PUT the object for `expires_s`; None if this store gives none."""
        return self._sign("PUT", key, expires_s)

    def _sign(self, method: Literal["GET", "PUT"], key: str, expires_s: int) -> str | None:
        if self._public is None:
            return None
        with _own_errors(key):
            return obstore.sign(self._public, method, _checked(key), timedelta(seconds=expires_s))

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes `start` to `end` (exclusive; None means the end) in chunks of about 256 KiB: a client that does not
        read holds several.

        The range must begin inside the object: compare with `head().size_bytes` first.

        Raises:
            NotFound: at the first chunk.
        """
        options: GetOptions = {"range": {"offset": start}} if start else {}
        if end is not None:
            options = {"range": (start, end)}
        with _own_errors(key):
            found = await obstore.get_async(self._store, _checked(key), options=options)
            async for chunk in found.stream(SENT_BYTES):
                yield bytes(chunk)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], max_bytes: int) -> int:
        """Write an object of unknown length, a part at a time; returns its size in bytes.

        An error of `chunks` or a cancellation leaves nothing in the store.

        Raises:
            TooLarge: there were more than `max_bytes`.
        """
        body = _Body(chunks, max_bytes)
        with _own_errors(key, missing=StoreUnavailable):
            upload = asyncio.ensure_future(
                obstore.put_async(
                    self._store, _checked(key), body, chunk_size=PART_BYTES, max_concurrency=PARTS_IN_FLIGHT
                )
            )
            try:
                await asyncio.shield(upload)
            except asyncio.CancelledError:
                # obstore aborts a multipart upload when its body fails, but not when its task is canceled.
                body.stop()
                upload.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                await asyncio.wait({upload}, timeout=_ABORT_TIMEOUT_S)
                raise
        return body.size_bytes


class _Body:
    """An upload's chunks, counted and bounded; `stop` ends them with an error."""

    def __init__(self, chunks: AsyncIterator[bytes], max_bytes: int) -> None:
        self.size_bytes = 0
        self._chunks = chunks
        self._max_bytes = max_bytes
        self._stopped = False
        self._reading: asyncio.Task[object] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._reading = asyncio.current_task()
        if self._stopped:
            raise asyncio.CancelledError
        chunk = await anext(self._chunks)
        self.size_bytes += len(chunk)
        if self.size_bytes > self._max_bytes:
            raise TooLarge(f"the body is longer than the {self._max_bytes} bytes allowed; send a smaller file")
        return chunk

    def stop(self) -> None:
        self._stopped = True
        if self._reading is not None:
            self._reading.cancel()


def _connect(url: str, endpoint: str | None, credentials: Mapping[str, str]) -> ObjectStore:
    parts = urlsplit(url)
    scheme = parts.scheme
    client: ClientConfig = {**_CLIENT, "allow_http": True} if (endpoint or "").startswith("http://") else _CLIENT
    config: Any = {**credentials, **({"base_url" if scheme == "gs" else "endpoint": endpoint} if endpoint else {})}
    try:
        if scheme == "file":
            if parts.netloc not in {"", "localhost"} or "#" in url or "?" in url:
                raise ValueError("must be file:// and an absolute path, with # ? % in it written as %23 %3F %25")
            return LocalStore(Path(unquote(parts.path)), mkdir=True, automatic_cleanup=True)
        if bucket := _BUCKETS.get(scheme):
            return bucket.from_url(url, config=config, client_options=client, retry_config=_RETRY)
    except (BaseError, OSError, ValueError) as error:
        raise ConfigurationError(f"store_url {url}: {str(error).partition(chr(10))[0]}") from error
    raise ConfigurationError(f"store_url {url}: its scheme must be file, s3, gs or az")


def _checked(key: str) -> str:
    if len(key) > 900 or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise RequestError(f"{key[:200]!r} is not a key of the store: use those of serinette.names")
    return key


def _stored(meta: ObjectMeta) -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"])


@contextmanager
def _own_errors(what: str, *, missing: type[NotFound] | type[StoreUnavailable] = NotFound) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        why = "is not in the store" if missing is NotFound else "cannot be kept: the store's bucket does not exist"
        raise missing(f"{what} {why}") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise StoreUnavailable(f"the store refuses our credentials for {what}; its operator must fix them") from error
    except BaseError as error:
        if _NO_SPACE in str(error):
            raise StoreUnavailable(_disk_full(what, "the store")) from error
        raise StoreUnavailable(f"the store does not answer for {what}; try again later") from error


def _disk_full(what: str, where: object) -> str:
    return f"{what} cannot be written: the disk of {where} is full; free space there"
