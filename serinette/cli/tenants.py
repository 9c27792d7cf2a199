"""`serinette keys` and `serinette tenants`, for operators: keys, limits, erasing a tenant. They need Redis."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import quote

import typer
from pydantic import TypeAdapter, ValidationError
from rich.markup import escape
from rich.table import Column

from serinette import credentials
from serinette.cli.options import AsJson, checked, with_fields, within
from serinette.cli.terminal import age, errors, output, show_table
from serinette.credentials import Credential, Limits, TenantName
from serinette.errors import QueueUnavailable
from serinette.job import now
from serinette.names import Keys, Lane, Right

if TYPE_CHECKING:
    from redis import Redis

keys = typer.Typer(help="Tenants' API keys and limits. Gateways with SERINETTE_AUTH=true ask for them.")
tenants = typer.Typer(help="Tenants: erase all that is kept of one.")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(r"(\d{1,5}(?:\.\d{1,5})?)([smhd])", re.ASCII)

RedisUrl = Annotated[
    str | None,
    typer.Option(
        envvar="SERINETTE_REDIS_URL", help="The gateways' Valkey or Redis; else that of `serinette up` in --data-dir."
    ),
]
StoreUrl = Annotated[
    str | None,
    typer.Option(envvar="SERINETTE_STORE_URL", help="The gateways' store; else that of `serinette up` in --data-dir."),
]
DataDir = Annotated[Path, typer.Option("--data-dir", envvar="SERINETTE_DATA_DIR", help="Of `serinette up`.")]
Tenant = Annotated[str, typer.Argument(help="Lower-case letters, digits and dashes.", show_default=False)]
KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="As `keys list` shows it.", show_default=False)]
_HERE = Path("serinette-data")


class Place(NamedTuple):
    """Where keys are kept."""

    redis: Redis
    keys: Keys


@contextmanager
def opened(redis_url: RedisUrl = None, data_dir: DataDir = _HERE) -> Iterator[Place]:
    """The gateways' Redis, or that of `serinette up`. Raises QueueUnavailable."""
    from redis import RedisError  # noqa: PLC0415  # of the server extra

    from serinette.settings import SharedSettings, connect_redis, read  # noqa: PLC0415  # as heavy as a server

    socket = data_dir.absolute() / "valkey.sock"
    url = redis_url or (f"unix://{quote(str(socket))}" if socket.exists() else None)
    settings = read(SharedSettings, **({"redis_url": url} if url else {}))
    try:
        with connect_redis(settings) as redis:
            yield Place(redis, settings.keys)
    except RedisError as error:
        raise QueueUnavailable(
            f"no Valkey or Redis answers: name the gateways' with --redis-url, or start `serinette up` ({error})"
        ) from error


@keys.command()
@within(opened)
def create(
    place: Place,
    tenant: Tenant,
    note: Annotated[str, typer.Option(help="Whose it is, for lists.")] = "",
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="How long it is valid: 90d, 12h.")] = None,
    right: Annotated[
        list[Right] | None,
        typer.Option(help="What it may do beside what all keys may; operator:read: see all pools and tenants."),
    ] = None,
    declare: Annotated[
        bool, typer.Option("--declare", help="Keep nothing; print what the gateways' SERINETTE_KEYS_FILE needs too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key for a tenant. It is shown this once: what is kept is its SHA-256."""
    life_s = _seconds(expires, "--expires") if expires else None
    key, kept = credentials.new_key(checked_tenant(tenant), note=note, expires_at=_later(life_s), rights=right or ())
    if declare:
        errors.print('For the "keys" of the file; the key itself is below.')
        errors.print_json(kept.model_dump_json())
    else:
        credentials.save(place.redis, place.keys, kept)
    _show(key, kept, as_json=as_json)


@keys.command("list")
@within(opened)
def list_(place: Place, as_json: AsJson = False) -> None:
    """List the keys in Redis. Those that a file declares stand there."""
    found = credentials.list_credentials(place.redis, place.keys)
    if as_json:
        shown = [credential.model_dump(mode="json", exclude={"sha256"}) for credential in found]
        output.print_json(data=shown)
        return
    aged = Column("AGE", justify="right")
    columns = (Column("KEY"), Column("TENANT"), aged, Column("EXPIRES"), Column("RIGHTS"), Column("NOTE"))
    rows = [
        (one.id, one.tenant, age(one.created_at), _expiry(one), ", ".join(one.rights), escape(one.note))
        for one in found
    ]
    show_table(columns, rows)


@keys.command()
@within(opened)
def revoke(place: Place, key_id: KeyId, as_json: AsJson = False) -> None:
    """End a key, and the links that were signed with it, within seconds."""
    credentials.revoke(place.redis, place.keys, key_id)
    if as_json:
        output.print_json(data={"id": key_id, "revoked": True})
    errors.print("revoked; gateways that have just seen it take it for some seconds more")


@keys.command()
@within(opened)
def rotate(
    place: Place,
    key_id: KeyId,
    overlap: Annotated[str, typer.Option(metavar="TIME", help="How long the old one is valid beside it.")] = "24h",
    as_json: AsJson = False,
) -> None:
    """Make a new key for the same tenant; the old one ends after the overlap."""
    end = _later(_seconds(overlap, "--overlap"))  # refused before there is a key
    old = credentials.find(place.redis, place.keys, key_id)
    key, kept = credentials.new_key(old.tenant, note=old.note, rights=old.rights)
    credentials.save(place.redis, place.keys, kept)
    ends = [at for at in (end, old.expires_at) if at is not None]
    credentials.save(place.redis, place.keys, old.model_copy(update={"expires_at": min(ends)}))
    _show(key, kept, as_json=as_json)


@keys.command("limit")
@with_fields({"Limits": "jobs_in_flight queued_jobs requests_per_minute gpu_seconds_per_day"}, Limits)
@within(opened)
def limit(
    place: Place,
    tenant: Tenant,
    lane: Annotated[list[Lane] | None, typer.Option(help="A lane it may use; may be repeated. None: all.")] = None,
    as_json: AsJson = False,
    **bounds: Any,  # noqa: ANN401  # fields of Limits
) -> None:
    """Say what a tenant may use. What is left out is without bound."""
    allowed = checked(Limits, {**bounds, "lanes": lane or None})
    credentials.set_limits(place.redis, place.keys, checked_tenant(tenant), allowed)
    if as_json:
        output.print_json(data={tenant: allowed.model_dump(mode="json")})
    else:
        errors.print(f"{tenant}: {_words(allowed)}")


@keys.command("limits")
@within(opened)
def limits(place: Place, as_json: AsJson = False) -> None:
    """List what tenants may use; those that are not listed may use all."""
    found = credentials.limits(place.redis, place.keys)
    if as_json:
        output.print_json(data={name: allowed.model_dump(mode="json") for name, allowed in found.items()})
        return
    show_table((Column("TENANT"), Column("MAY USE")), [(name, _words(allowed)) for name, allowed in found.items()])


@tenants.callback()
def _group() -> None:
    """Keeps `erase` a command of its own, though it is the only one."""


@tenants.command()
def erase(
    tenant: Tenant,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="Seconds for canceled jobs to end.")] = 60,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
    data_dir: DataDir = _HERE,
) -> None:
    """Erase a tenant: its keys and limits, jobs, songs, uploads, batches, usage, and webhooks that wait."""
    from serinette.settings import SharedSettings, read  # noqa: PLC0415  # as in `opened`
    from serinette.store import Store  # noqa: PLC0415  # as in `opened`
    from serinette.tenant_erasure import erase_tenant  # noqa: PLC0415  # as in `opened`

    name = checked_tenant(tenant)
    if not yes:
        typer.confirm(f"Erase all of tenant {name}, for good?", abort=True, err=True)
    own = data_dir.absolute() / "store"
    url = store_url or (own.as_uri() if own.is_dir() else None)
    with opened(redis_url, data_dir) as place:
        settings = read(SharedSettings, **({"store_url": url} if url else {}))
        erased = erase_tenant(place.redis, Store.open(settings), settings, name, wait_s)
    if as_json:
        output.print_json(data={"tenant": name, **asdict(erased)})
        return
    errors.print(
        f"{name}: {erased.keys} keys, {erased.jobs} jobs, {erased.batches} batches, {erased.objects} objects erased; "
        "a key that a file declares is removed there",
        markup=False,
        soft_wrap=True,
    )


def _show(key: str, kept: Credential, *, as_json: bool) -> None:
    if as_json:
        shown = kept.model_dump(mode="json", exclude={"sha256"})
        output.print_json(data={"key": key, **shown})
        return
    errors.print(f"A key of tenant {kept.tenant}, id {kept.id}, valid {_expiry(kept)}. It is not shown again:")
    output.print(key, soft_wrap=True, markup=False, highlight=False)


def _expiry(credential: Credential) -> str:
    if credential.expires_at is None:
        return "until revoked"
    return f"until {credential.expires_at:%Y-%m-%d %H:%M} UTC" + (" (over)" if credential.expired(now()) else "")


def _words(allowed: Limits) -> str:
    given = allowed.model_dump(mode="json", exclude_none=True)
    return (
        ", ".join(f"{name} {'+'.join(value) if isinstance(value, list) else value}" for name, value in given.items())
        or "all"
    )


def checked_tenant(name: str) -> str:
    """A tenant's name. Raises typer.BadParameter."""
    try:
        return TypeAdapter[str](TenantName).validate_python(name)
    except ValidationError:
        raise typer.BadParameter(
            f"{name!r}: at most 63 lower-case letters, digits and dashes, the first no dash", param_hint="TENANT"
        ) from None


def _seconds(text: str, option: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 30m, 24h or 90d", param_hint=option)
    return float(match[1]) * _SECONDS[match[2]]


def _later(seconds: float | None) -> datetime | None:
    return None if seconds is None else now() + timedelta(seconds=seconds)
