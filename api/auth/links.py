"""Links to one job without a key: signed ones that live for minutes, for browser APIs that cannot send headers
(WebSocket, EventSource, <audio>), and one that shares its songs for a day and can be revoked.

A signed link is recorded nowhere, and so cannot be revoked apart from its key. The token of a shared one is random, and
is valid as long as Redis holds it.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import time
from typing import Any

from redis import asyncio as redis_asyncio
from redis.asyncio.client import Pipeline

from api.auth.keyring import Caller, Keyring
from api.outages import queue_errors
from serinette.errors import Unauthorized
from serinette.names import Keys

# The only paths that links open.
_OPENS = re.compile(r"/v1/jobs/([0-9a-f-]{36})/(audio|events)")
_TOKEN = re.compile(r"([0-9a-f]{12})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})")
_SECRET_CACHE_S = 2.0


def opened_by_link(method: str, path: str) -> tuple[str, str] | None:
    """The job whose link may authorize this request, and which of `audio` and `events`; None on other paths."""
    match = _OPENS.fullmatch(path)
    return (match[1], match[2]) if match and method in {"GET", "HEAD"} else None


def token_of(secret: bytes, caller: Caller, job_id: str, expires_s: int) -> str:
    """The token of a link: key id, expiry in Unix seconds, and a MAC over both, the tenant and the job."""
    return f"{caller.key_id}.{expires_s}.{_mac(secret, caller, job_id, expires_s)}"


def _mac(secret: bytes, caller: Caller, job_id: str, expires_s: int) -> str:
    message = "\n".join(("link", caller.tenant, caller.key_id, job_id, str(expires_s)))
    return base64.urlsafe_b64encode(hmac.digest(secret, message.encode(), "sha256")).decode().rstrip("=")


class Links:
    """Signs and verifies links. All gateways share one secret, which the first one writes to Redis."""

    def __init__(self, redis: redis_asyncio.Redis, keys: Keys, keyring: Keyring) -> None:
        """`redis` must decode responses."""
        self._redis = redis
        self._keys = keys
        self._keyring = keyring
        self._secret: tuple[float, bytes] = 0.0, b""

    async def sign(self, caller: Caller, job_id: str, life_s: int) -> tuple[str, int]:
        """A token for one job, and its expiry in Unix seconds. Raises QueueUnavailable."""
        expires_s = int(time.time()) + life_s
        return token_of(await self._shared_secret(), caller, job_id, expires_s), expires_s

    async def share(self, caller: Caller, job_id: str, life_s: int) -> tuple[str, int]:
        """The token that shares a job's songs, already valid or new, and its expiry in Unix seconds. Raises
        QueueUnavailable.
        """
        name = self._keys.share(job_id)

        async def make(pipe: Pipeline) -> tuple[str, int]:
            if found := await self.shared(job_id):
                return found
            expires_s = int(time.time()) + life_s
            token = f"{caller.key_id}.{expires_s}.{secrets.token_urlsafe(32)}"
            pipe.multi()  # type: ignore[no-untyped-call]  # redis-py's
            pipe.set(name, token, ex=life_s)
            return token, expires_s

        with queue_errors():  # made again where another request shared the job meanwhile
            made: tuple[str, int] = await self._redis.transaction(make, name, value_from_callable=True)
        return made

    async def shared(self, job_id: str) -> tuple[str, int] | None:
        """The token that a job is shared by now, and its expiry; None without one. Raises QueueUnavailable."""
        with queue_errors():
            token: Any = await self._redis.get(self._keys.share(job_id))
        match = _TOKEN.fullmatch(token or "")
        if match is None or await self._keyring.holder(match[1]) is None:
            return None
        return token, int(match[2])

    async def revoke(self, job_id: str) -> None:
        """End the sharing of a job, from the next request on. Raises QueueUnavailable."""
        with queue_errors():
            await self._redis.delete(self._keys.share(job_id))

    async def caller(self, token: str, job_id: str, opened: str) -> Caller:
        """The caller that a link was made for. A link is valid only as long as that caller's key; a shared one opens
        `audio` alone.

        Raises:
            Unauthorized: the signature is not for this job, or the link or its key is expired or revoked.
            QueueUnavailable: key or secret are not cached, and Redis does not answer.
        """
        match = _TOKEN.fullmatch(token)
        caller = await self._keyring.holder(match[1]) if match else None
        if match is None or caller is None or int(match[2]) < time.time():
            raise _bad_link()
        expected = _mac(await self._shared_secret(), caller, job_id, int(match[2]))
        if hmac.compare_digest(expected, match[3]):
            return caller
        found = await self.shared(job_id) if opened == "audio" else None
        if found is None or not hmac.compare_digest(found[0], token):
            raise _bad_link()
        return caller

    async def _shared_secret(self) -> bytes:
        until_s, secret = self._secret
        if time.monotonic() < until_s:
            return secret
        fresh = secrets.token_hex(32)
        with queue_errors("links cannot be checked meanwhile; try again"):
            found: Any = await self._redis.get(self._keys.link_secret)  # also where its memory is full
            found = found or await self._redis.set(self._keys.link_secret, fresh, nx=True, get=True)
        secret = (found or fresh).encode()
        # Cached for a short time, because an emptied Redis gets a new secret.
        self._secret = time.monotonic() + _SECRET_CACHE_S, secret
        return secret


def _bad_link() -> Unauthorized:
    return Unauthorized(
        "this link has expired or is for another job; make a new one with POST /v1/jobs/{id}/links", field="token"
    )
