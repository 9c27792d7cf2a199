"""Settings of the gateway."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from serinette.names import DEFAULT_POOL
from serinette.pools import PoolName, PoolSettings
from serinette.settings import ContainerSettings
from serinette.webhook import is_loopback
from serinette.webhook_targets import WebhookSettings


def _listed(value: str) -> list[str]:
    """Items with commas between them, or as JSON."""
    if not value.lstrip().startswith("["):
        return [item for part in value.split(",") if (item := part.strip())]
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError('must be like https://a.example,https://b.example or ["https://a.example"]')
    return found


def _origin(text: str) -> str:
    """An origin as browsers write it: no slash at its end, scheme and host in lower case."""
    if text in {"*", "null"}:
        return text
    parts = urlsplit(text.rstrip("/"))
    if not parts.scheme or not parts.netloc or parts.path or parts.query or parts.fragment:
        raise ValueError(f"{text} is no origin; write scheme and host, and no path: https://app.example")
    return f"{parts.scheme}://{parts.netloc}".lower()


def _listed_with(convert: Callable[[str], str]) -> BeforeValidator:
    return BeforeValidator(lambda value: tuple(map(convert, _listed(value))) if isinstance(value, str) else value)


class GatewaySettings(WebhookSettings, PoolSettings, ContainerSettings):
    """Read from the environment, once, in `main()`."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    auth: bool = Field(False, description="Require a key on every request; made with `serinette keys create`.")
    allow_anyone: bool = Field(
        False,
        description="Listen beyond this machine without keys: any client that reaches the port may do everything.",
    )
    keys_file: Path | None = Field(
        None, description="JSON file of tenants and digests of keys, e.g. a mounted Secret; read again as it changes."
    )
    key_in_path: bool = Field(
        False, description="Accept a key in the path, too, /k/{key}/..., for clients that cannot send headers."
    )
    key_cache_s: float = Field(
        2.0, ge=0, le=10, description="How long a gateway caches a key: a revoked one may be accepted for so long."
    )
    link_s: int = Field(900, ge=10, le=86_400, description="Lifetime of a signed link to a job's audio and events.")
    share_s: int = Field(86_400, ge=10, le=30 * 86_400, description="Lifetime of a link that shares a job's songs.")
    # NoDecode, here and below, because values in charts and shells are seldom JSON.
    hosts: Annotated[tuple[str, ...], NoDecode, _listed_with(str.lower)] = Field(
        (),
        description="Names, with commas between them, that a gateway without keys on loopback answers to beside "
        "localhost, e.g. where a proxy on this machine passes its own name on.",
    )
    max_waiting: int = Field(10_000, ge=1, description="Jobs that may wait in one lane; a submit above is 429.")
    port: int = Field(8019, ge=0, le=65_535, description="Port to listen on; the seed's clients expect 8019.")
    pool: PoolName = Field(DEFAULT_POOL, description="Pool for jobs that name no model.")
    cors_origins: Annotated[tuple[str, ...], NoDecode, _listed_with(_origin)] = Field(
        (),
        description="Origins that browsers may call from, with commas between them or as JSON, beside pages of this "
        "machine (http://localhost:*, http://127.0.0.1:*) where the gateway listens on loopback. `*` and `null`, which "
        "files have, are the whole web: only with SERINETTE_AUTH.",
    )
    root_path: str = Field(
        "",
        description="Path under which a proxy publishes this gateway, e.g. /music; requests come with or without it.",
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, _listed_with(str)] = Field(
        (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")),
        description="Addresses or networks, with commas between them, of proxies whose X-Forwarded-Prefix and "
        "X-Forwarded-Host are believed.",
    )
    job_timeout_s: int = Field(1800, ge=10, le=6 * 3600, description="Longest run of a job that sets none.")
    max_attempts: int = Field(3, ge=1, le=10, description="Attempts before a job fails for good.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Longest JSON or form body.")
    max_batch_bytes: int = Field(
        256 * 1024 * 1024, ge=1024, description="Longest JSON Lines file of a batch. A batch as JSON is a JSON body."
    )
    max_batches: int = Field(100, ge=1, description="Unfinished batches of one tenant; a new one above is 429.")
    max_upload_bytes: int = Field(200 * 1024 * 1024, ge=1024, description="Longest uploaded audio file.")
    max_upload_duration_s: float = Field(600, gt=0, description="Longest uploaded audio.")
    idempotency_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Job and batch ids are derived from it and the Idempotency-Key. It must be the same on all "
        "gateways and must not change, or an earlier key makes a new job. None: from tenant and key "
        "(docs/decisions/0013).",
    )
    max_wait_s: float = Field(50, gt=0, le=300, description="Longest that one request waits for its song.")
    generate_music_waits: bool = Field(
        True,
        description="Whether POST /generate_music waits for its song, as documented. false: it answers the request's "
        "id at once, as ACE-Step-directAPI's own server did; /status and /result then have the song.",
    )
    presign_s: int = Field(3600, ge=60, le=604_800, description="Lifetime of a presigned URL.")
    drain_timeout_s: int = Field(30, ge=0, description="On SIGTERM, how long open requests may still finish.")
    durability: Literal["process", "fsync"] = Field(
        "process",
        description="fsync: a submit is answered once it is on the disk of the queue's server (WAITAOF, up to a second "
        "more). process: once it is in the server's memory. docs/durability.md says what each survives.",
    )

    @property
    def disk_wait_ms(self) -> int:
        """How long a submit waits for the queue's disk; 0 unless durability is fsync. The rest of the longest wait for
        one answer of Redis is for the answer's way.
        """
        return int(self.redis_timeout_s * 1000 * 0.8) if self.durability == "fsync" else 0

    @property
    def cors_origin_regex(self) -> str | None:
        """Further origins: on loopback, pages that this machine serves."""
        return r"http://(localhost|127\.0\.0\.1)(:\d{1,5})?" if is_loopback(self.host) else None

    def allows_origin(self, origin: str) -> bool:
        """Whether pages from there may call."""
        if "*" in self.cors_origins or origin.lower() in self.cors_origins:
            return True
        return self.cors_origin_regex is not None and re.fullmatch(self.cors_origin_regex, origin) is not None

    @model_validator(mode="after")
    def _open_only_on_purpose(self) -> Self:
        if self.auth or self.allow_anyone or is_loopback(self.host):
            return self
        raise ValueError(
            f"host: listening on {self.host} without keys would let anyone in. Set SERINETTE_AUTH=true and make a key "
            "with `serinette keys create`, or set SERINETTE_ALLOW_ANYONE=true where the network keeps others out"
        )

    @model_validator(mode="after")
    def _the_web_has_a_key(self) -> Self:
        everywhere = [origin for origin in self.cors_origins if origin in {"*", "null"}]
        if everywhere and not self.auth:
            raise ValueError(
                f"cors_origins: {everywhere[0]} lets any page of the web call. Require keys (SERINETTE_AUTH=true), or "
                "name the origins"
            )
        return self

    @field_validator("root_path")
    @classmethod
    def _plain(cls, value: str) -> str:
        prefix = checked_prefix(value) if value.strip("/ ") else ""
        if prefix is None:
            raise ValueError("must be a path like /music: letters, digits and ._~-, no empty parts")
        if prefix.split("/")[1:2] in (["v1"], ["k"]):
            raise ValueError("must not begin as the gateway's own paths do, /v1 or /k")
        return prefix


_PREFIX = re.compile(r"/[A-Za-z0-9._~/-]{0,200}")


def checked_prefix(text: str) -> str | None:
    """A prefix of paths, without a slash at its end; None if it is no plain absolute path."""
    text = text.strip().rstrip("/")
    plain = _PREFIX.fullmatch(text) and "//" not in text and not {".", ".."} & set(text.split("/"))
    return text if plain else None
