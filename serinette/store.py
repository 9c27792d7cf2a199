"""Artifacts: one way in, one way out, over a directory, S3, GCS or Azure (obstore)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store

from serinette.errors import ConfigurationError, NotFound, RequestError, StoreUnavailable, TooLarge
from serinette.settings import SharedSettings

CHUNK_BYTES = 1024 * 1024
# S3 refuses parts below 5 MiB.
PART_BYTES = 5 * 1024 * 1024
PARTS_IN_FLIGHT = 2

# An endpoint that refuses, cannot be reached or says nothing is given up within about ten seconds.
_RETRY: Any = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=6),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
# `timeout` spans a whole body, and a slow listener's takes long; silence is what `read_timeout` bounds.
_CLIENT: Any = {"connect_timeout": "3s", "read_timeout": "8s", "timeout": "1h"}

# What serinette/names.py writes, and nothing that a file system or a URL could read otherwise.
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_SIGNING = (S3Store, GCSStore, AzureStore)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What the store knows of one object without reading it."""

    key: str
    size_bytes: int
    etag: str | None
    modified: datetime


class Store:
    """One bucket or directory, under one prefix.

    Every method raises RequestError for a key that serinette/names.py could not have made, and StoreUnavailable
    (retryable) when the store does not answer within about ten seconds or refuses our credentials.
    """

    def __init__(self, store: ObjectStore, public: S3Store | GCSStore | AzureStore | None = None) -> None:
        self._store = store
        self._public = public

    @classmethod
    def open(cls, settings: SharedSettings) -> Store:
        """Open the store of `settings`; a directory is created, a bucket is not. Credentials are obstore's own.

        Raises:
            ConfigurationError: the URL is not one that obstore knows, or the directory cannot be created.
        """
        store = _connect(settings.store_url, settings.store_endpoint)
        if settings.store_public_endpoint is None or not isinstance(store, _SIGNING):
            return cls(store)
        public = _connect(settings.store_url, settings.store_public_endpoint)
        return cls(store, public if isinstance(public, _SIGNING) else None)

    def ping(self) -> None:
        """Ask the store for one listing."""
        with _own_errors("the store"):
            next(iter(obstore.list(self._store, "ping", chunk_size=1)), None)

    def put(self, key: str, data: bytes | Path, content_type: str | None = None) -> None:
        """Write an object, whole or not at all; an older one of this key is replaced."""
        with _own_errors(key):
            obstore.put(self._store, _checked(key), data, attributes=self._attributes(content_type))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; of many callers exactly one gets True."""
        with _own_errors(key):
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

    def download(self, key: str, path: Path) -> None:
        """Write an object's bytes to `path`, a chunk at a time. Raises NotFound."""
        with _own_errors(key):
            chunks = obstore.get(self._store, _checked(key)).stream(CHUNK_BYTES)
            with path.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object under `prefix`, in no order."""
        with _own_errors(prefix):
            for found in obstore.list(self._store, _checked(prefix.rstrip("/"))):
                yield from map(_stored, found)

    def delete(self, key: str) -> None:
        """Erase an object; one that is not there is erased already."""
        with _own_errors(key):
            try:
                obstore.delete(self._store, _checked(key))
            except FileNotFoundError:
                return

    def delete_prefix(self, prefix: str) -> int:
        """Erase everything under `prefix`; how many objects there were."""
        count = 0
        for count, found in enumerate(self.list(prefix), 1):
            self.delete(found.key)
        return count

    def sign_get(self, key: str, expires_s: int) -> str | None:
        """URL that anyone may read the object by for `expires_s`; None when this store has none to give.

        Its Content-Type is the one given to `put`: obstore cannot sign an override.
        """
        return self._sign("GET", key, expires_s)

    def sign_put(self, key: str, expires_s: int) -> str | None:
        """URL that anyone may write the object by for `expires_s`; None when this store has none to give."""
        return self._sign("PUT", key, expires_s)

    async def stream(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Bytes `start` to `end` (exclusive, None: the end) in chunks. Raises NotFound at the first."""
        with _own_errors(key):
            span: Any = {"offset": start} if end is None else (start, end)
            found = await obstore.get_async(self._store, _checked(key), options={"range": span})
            async for chunk in found.stream(CHUNK_BYTES):
                yield bytes(chunk)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes], max_bytes: int) -> int:
        """Write an object of unknown length, a part at a time; its size in bytes.

        Raises:
            TooLarge: more than `max_bytes` came; nothing is left in the store.
        """
        size = 0

        async def bounded() -> AsyncIterator[bytes]:
            nonlocal size
            async for chunk in chunks:
                size += len(chunk)
                if size > max_bytes:
                    raise TooLarge(f"the body is longer than the {max_bytes} bytes allowed; send a smaller file")
                yield chunk

        with _own_errors(key):
            await obstore.put_async(
                self._store, _checked(key), bounded(), chunk_size=PART_BYTES, max_concurrency=PARTS_IN_FLIGHT
            )
        return size

    def _attributes(self, content_type: str | None) -> dict[str, str] | None:
        return {"Content-Type": content_type} if content_type and isinstance(self._store, _SIGNING) else None

    def _sign(self, method: Any, key: str, expires_s: int) -> str | None:
        if self._public is None:
            return None
        with _own_errors(key):
            return obstore.sign(self._public, method, _checked(key), timedelta(seconds=expires_s))


def _connect(url: str, endpoint: str | None) -> ObjectStore:
    client = {**_CLIENT, "allow_http": (endpoint or "").startswith("http://")}
    scheme = urlsplit(url).scheme
    try:
        if scheme == "file":
            return LocalStore(Path(unquote(urlsplit(url).path)), mkdir=True, automatic_cleanup=True)
        if scheme == "gs":
            base = {"base_url": endpoint} if endpoint else {}
            return GCSStore.from_url(url, config=base, client_options=client, retry_config=_RETRY)
        config = {"endpoint": endpoint} if endpoint else {}
        if scheme == "az":
            return AzureStore.from_url(url, config=config, client_options=client, retry_config=_RETRY)
        if scheme == "s3":
            return S3Store.from_url(url, config=config, client_options=client, retry_config=_RETRY)
    except (BaseError, OSError, ValueError) as error:
        raise ConfigurationError(f"store_url {url}: {str(error).partition(chr(10))[0]}") from error
    raise ConfigurationError(f"store_url {url}: its scheme must be file, s3, gs or az")


def _checked(key: str) -> str:
    if len(key) > 900 or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise RequestError(f"{key[:200]!r} is not a key of the store: use serinette.names")
    return key


def _stored(meta: Any) -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"])


@contextmanager
def _own_errors(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"{what} is not in the store") from error
    except (BaseError, OSError) as error:
        raise StoreUnavailable(f"the store does not answer for {what}; try again later") from error
