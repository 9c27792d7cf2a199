"""Keys and limits of tenants: from a declared file or from Redis, cached for seconds."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from redis import asyncio as redis_asyncio

from api.outages import queue_errors
from api.settings import GatewaySettings
from serinette.credentials import Credential, Declared, Limits, id_of
from serinette.errors import ConfigurationError, Unauthorized
from serinette.job import now
from serinette.names import Right

log = logging.getLogger(__name__)
_Kind = TypeVar("_Kind", bound=BaseModel)

# Key id of callers without a key, where authentication is off.
NO_KEY = "0" * 12

_NO_KEY = "send a key: `Authorization: Bearer srn_...`; the operator makes one with `serinette keys create`"
_BAD_KEY = "this key is not known, expired or revoked; ask the operator for another"


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant and key that a request is from, with the tenant's limits."""

    tenant: str
    key_id: str
    limits: Limits
    rights: tuple[Right, ...] = ()


class DeclaredFile:
    """The file of tenants and keys, read again when it changes. If it becomes unreadable, the last content stays."""

    def __init__(self, path: Path | None, look_every_s: float) -> None:
        """Raises ConfigurationError when the file is missing or wrong."""
        self._path = path
        self._look_every_s = look_every_s
        self._seen: tuple[float, int] | None = None
        self._next_s = 0.0
        self._credentials: dict[str, Credential] = {}
        self._limits: dict[str, Limits] = {}
        if path is not None:
            self._read(path)

    def credential(self, key_id: str) -> Credential | None:
        """A key that the file declares."""
        self._look()
        return self._credentials.get(key_id)

    def limits(self, tenant: str) -> Limits | None:
        """A tenant's limits that the file declares."""
        self._look()
        return self._limits.get(tenant)

    def tenants(self) -> set[str]:
        """Tenants that the file has limits or keys of."""
        self._look()
        return {*self._limits, *(credential.tenant for credential in self._credentials.values())}

    def _look(self) -> None:
        if self._path is None or time.monotonic() < self._next_s:
            return
        try:
            self._read(self._path)
        except ConfigurationError as error:
            log.error("keys stay as they were: %s", error.message)

    def _read(self, path: Path) -> None:
        self._next_s = time.monotonic() + self._look_every_s
        try:
            found = path.stat()
            if self._seen == (found.st_mtime, found.st_ino):
                return
            declared = Declared.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"keys_file: {path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]  # the input may contain a secret
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"keys_file: {path}: {where}: {first['msg']}") from None
        self._seen = found.st_mtime, found.st_ino
        self._credentials = {credential.id: credential for credential in declared.keys}
        self._limits = dict(declared.tenants)


class Keyring:
    """Keys and limits of all tenants, cached for `key_cache_s`."""

    def __init__(self, redis: redis_asyncio.Redis, settings: GatewaySettings, declared: DeclaredFile) -> None:
        """`redis` must decode responses."""
        self._redis = redis
        self._keys = settings.keys
        self._cache_s = settings.key_cache_s
        self._declared = declared
        self._known: dict[str, tuple[float, Credential, Limits]] = {}  # valid keys only, so that guesses take no memory

    async def caller(self, key: str | None) -> Caller:
        """The caller of a key.

        Raises:
            Unauthorized: there is no key, or it is not valid.
            QueueUnavailable: the key is not cached, and Redis does not answer.
        """
        if key is None:
            raise Unauthorized(_NO_KEY, field="Authorization")
        key_id = id_of(key)
        found = await self._find(key_id) if key_id else None
        if found is None or not found[0].admits(key, now()):
            raise Unauthorized(_BAD_KEY, field="Authorization")
        return Caller(found[0].tenant, found[0].id, found[1], found[0].rights)

    async def holder(self, key_id: str) -> Caller | None:
        """The caller of a key id; None once the key is revoked or expired.

        Raises:
            QueueUnavailable: the key is not cached, and Redis does not answer.
        """
        found = await self._find(key_id)
        if found is None or found[0].expired(now()):
            return None
        return Caller(found[0].tenant, key_id, found[1], found[0].rights)

    async def _find(self, key_id: str) -> tuple[Credential, Limits] | None:
        known = self._known.get(key_id)
        if known and time.monotonic() < known[0]:
            return known[1], known[2]
        self._known.pop(key_id, None)
        asked_s = time.monotonic()
        credential = self._declared.credential(key_id) or await self._read(self._keys.credentials, key_id, Credential)
        if credential is None:
            return None
        tenant = credential.tenant
        limits = self._declared.limits(tenant) or await self._read(self._keys.tenants, tenant, Limits) or Limits()
        self._known[key_id] = asked_s + self._cache_s, credential, limits
        return credential, limits

    async def _read(self, name: str, field: str, kind: type[_Kind]) -> _Kind | None:
        with queue_errors("keys cannot be checked meanwhile; try again"):
            text: Any = await self._redis.hget(name, field)
        return None if text is None else kind.model_validate_json(text)


@dataclass(frozen=True, slots=True)
class CallerCheck:
    """Checks that a caller's key is still valid during a long request."""

    keyring: Keyring
    caller: Caller

    async def holds(self) -> bool:
        """Whether its key is neither revoked nor expired. Raises QueueUnavailable when that cannot be checked."""
        if self.caller.key_id == NO_KEY:
            return True
        holder = await self.keyring.holder(self.caller.key_id)
        return holder is not None and holder.tenant == self.caller.tenant

    async def require(self) -> None:
        """Raises Unauthorized when the key is no longer valid."""
        if not await self.holds():
            raise Unauthorized(_BAD_KEY, field="Authorization")
