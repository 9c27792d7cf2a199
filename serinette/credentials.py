"""Tenants' API keys and what each tenant may use: made by the CLI, checked by the gateway.

A key is `srn_{id}_{secret}`: the id is public and names the key in lists and logs, the secret is 256 random bits. Only
the SHA-256 of the whole key is stored. A slow hash (bcrypt, Argon2) protects secrets that people choose, because those
can be guessed; 256 random bits cannot, and a slow hash would let unknown clients use up CPU at each request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from serinette.errors import NotFound
from serinette.job import now
from serinette.names import Keys, Lane, Right
from serinette.spec import RecordModel

if TYPE_CHECKING:
    from redis import Redis  # of the server extra, which clients of `Limits` do without

_KEY = re.compile(r"srn_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")

# Part of Redis keys and object keys: no colon, no slash, no dots.
TenantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]


class Limits(BaseModel):
    """Limits of a tenant; null is unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lanes: tuple[Lane, ...] | None = Field(None, min_length=1, description="Lanes it may submit to.")
    jobs_in_flight: int | None = Field(None, ge=0, description="Unfinished jobs, waiting and running.")
    queued_jobs: int | None = Field(None, ge=0, description="Jobs that wait.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="Requests of any kind; all of them may come at once."
    )
    gpu_seconds_per_day: float | None = Field(
        None, ge=0, description="Of jobs that ended on this UTC day; jobs that run when it is reached are finished."
    )


class Credential(RecordModel):
    """One key as it is stored in Redis or in a declared file: its digest, never the key itself."""

    id: KeyId
    tenant: TenantName
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the whole key, hex.")
    note: str = Field("", max_length=200, description="Whose it is, for lists.")
    created_at: AwareDatetime = Field(default_factory=now)
    expires_at: AwareDatetime | None = Field(None, description="From then on it is refused.")
    rights: tuple[Right, ...] = Field((), description="What it may do beside what all keys may.")

    def admits(self, key: str, at: datetime) -> bool:
        """Whether `key` matches and is not expired. Compares in constant time."""
        same = hmac.compare_digest(self.sha256, digest_of(key))
        return same and not self.expired(at)

    def expired(self, at: datetime) -> bool:
        """Whether it has expired."""
        return self.expires_at is not None and at >= self.expires_at


class Declared(BaseModel):
    """Tenants and keys in a file, such as a mounted Secret. The file overrides the same id or tenant in Redis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tenants: dict[TenantName, Limits] = {}
    keys: tuple[Credential, ...] = ()


def id_of(key: str) -> str | None:
    """The public id in a key; None when it is no key of ours."""
    match = _KEY.fullmatch(key)
    return match[1] if match else None


def digest_of(key: str) -> str:
    """SHA-256 of a key, hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(
    tenant: str, *, note: str = "", expires_at: datetime | None = None, rights: Sequence[Right] = ()
) -> tuple[str, Credential]:
    """A new key, to be shown once, and its credential."""
    key_id = secrets.token_hex(6)
    key = f"srn_{key_id}_{secrets.token_urlsafe(32)}"
    kept = {"note": note, "expires_at": expires_at, "rights": tuple(rights)}
    return key, Credential(id=key_id, tenant=tenant, sha256=digest_of(key), **kept)


def save(redis: Redis, keys: Keys, credential: Credential) -> None:
    """Add a key, or replace the one with its id."""
    redis.hset(keys.credentials, credential.id, credential.model_dump_json())


def list_credentials(redis: Redis, keys: Keys) -> list[Credential]:
    """All keys in Redis, by tenant and age."""
    found = [Credential.model_validate_json(text) for text in redis.hgetall(keys.credentials).values()]
    return sorted(found, key=lambda credential: (credential.tenant, credential.created_at))


def find(redis: Redis, keys: Keys, key_id: str) -> Credential:
    """One key in Redis.

    Raises:
        NotFound: there is none of this id.
    """
    text = redis.hget(keys.credentials, key_id)
    if text is None:
        raise NotFound(f"there is no key {key_id[:40]} in Redis; a key that a file declares is changed there")
    return Credential.model_validate_json(text)


def revoke(redis: Redis, keys: Keys, key_id: str) -> None:
    """Delete a key: within seconds no gateway accepts it, nor a link that was signed with it.

    Raises:
        NotFound: there is none of this id.
    """
    if not redis.hdel(keys.credentials, key_id):
        find(redis, keys, key_id)


def limits(redis: Redis, keys: Keys) -> dict[str, Limits]:
    """Limits of all tenants in Redis."""
    raw: dict[Any, Any] = redis.hgetall(keys.tenants)
    return {name.decode(): Limits.model_validate_json(text) for name, text in sorted(raw.items())}


def set_limits(redis: Redis, keys: Keys, tenant: str, allowed: Limits) -> None:
    """Set the limits of a tenant, from its next request on."""
    redis.hset(keys.tenants, tenant, allowed.model_dump_json())
