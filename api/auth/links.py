"""Short-lived signed links, for the parts of a browser that send no header: WebSocket, EventSource and <audio>."""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import time
from typing import Any

from redis import asyncio as redis_asyncio
from redis.exceptions import RedisError

from api.auth.keyring import Caller, Keyring
from serinette.errors import QueueUnavailable, Unauthorized
from serinette.names import Keys

# What a link opens, and nothing else.
_OPENS = re.compile(r"/v1/jobs/([0-9a-f-]{36})/(?:audio|events)")
_TOKEN = re.compile(r"([0-9a-f]{12})\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})")
_SECRET_CACHE_S = 2.0


def job_opened_by_link(method: str, path: str) -> str | None:
    """The job that a link may open by this request; None where links open nothing."""
    match = _OPENS.fullmatch(path)
    return match[1] if match and method in {"GET", "HEAD"} else None


def token_of(secret: bytes, caller: Caller, job_id: str, expires_s: int) -> str:
    """What stands in the link: key id, expiry in Unix seconds, and a MAC that binds both to tenant and job."""
    return f"{caller.key_id}.{expires_s}.{_mac(secret, caller, job_id, expires_s)}"


def _mac(secret: bytes, caller: Caller, job_id: str, expires_s: int) -> str:
    said = "\n".join(("link", caller.tenant, caller.key_id, job_id, str(expires_s)))
    return base64.urlsafe_b64encode(hmac.digest(secret, said.encode(), "sha256")).decode().rstrip("=")


class Links:
    """Signs and checks links. All gateways share one secret, which the first of them puts into Redis."""

    def __init__(self, redis: redis_asyncio.Redis, keys: Keys, keyring: Keyring) -> None:
        """`redis` answers text."""
        self._redis = redis
        self._keys = keys
        self._keyring = keyring
        self._secret: tuple[float, bytes] = 0.0, b""

    async def sign(self, caller: Caller, job_id: str, life_s: int) -> tuple[str, int]:
        """A token for one job, and its expiry in Unix seconds. Raises QueueUnavailable."""
        expires_s = int(time.time()) + life_s
        return token_of(await self._shared_secret(), caller, job_id, expires_s), expires_s

    async def caller(self, token: str, job_id: str) -> Caller:
        """Whose link it is. A link ends with the key that it was asked for with.

        Raises:
            Unauthorized: it was not signed by us for this job, is over, or its key is.
            QueueUnavailable: Redis does not answer, and has to be asked.
        """
        match = _TOKEN.fullmatch(token)
        caller = await self._keyring.holder(match[1]) if match else None
        if match is None or caller is None or int(match[2]) < time.time():
            raise _bad_link()
        expected = _mac(await self._shared_secret(), caller, job_id, int(match[2]))
        if not hmac.compare_digest(expected, match[3]):
            raise _bad_link()
        return caller

    async def _shared_secret(self) -> bytes:
        until_s, secret = self._secret
        if time.monotonic() < until_s:
            return secret
        try:
            fresh = secrets.token_hex(32)
            found: Any = await self._redis.set(self._keys.link_secret, fresh, nx=True, get=True)
        except RedisError as error:
            raise QueueUnavailable("links cannot be checked, for the queue does not answer; try again") from error
        secret = (found or fresh).encode()
        # Not for ever: a Redis that came back empty has another one.
        self._secret = time.monotonic() + _SECRET_CACHE_S, secret
        return secret


def _bad_link() -> Unauthorized:
    return Unauthorized(
        "this link is over, or not for this; ask for another with POST /v1/jobs/{id}/links", field="token"
    )
