"""`serinette tenants`: for operators; needs Redis and the store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from serinette.cli.keys import AsJson, DataDir, RedisUrl, Tenant, checked_tenant, opened
from serinette.cli.terminal import errors, output

app = typer.Typer(help="Tenants: erase all that is kept of one.")

StoreUrl = Annotated[
    str | None,
    typer.Option(envvar="SERINETTE_STORE_URL", help="The gateways' store; else that of `serinette up` in --data-dir."),
]


@app.callback()
def _group() -> None:
    """Keeps `erase` a command of its own, though it is the only one."""


@app.command()
def erase(
    tenant: Tenant,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="Seconds for canceled jobs to end.")] = 60,
    as_json: AsJson = False,
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
    data_dir: DataDir = Path("serinette-data"),
) -> None:
    """Erase a tenant: its keys and limits, jobs, songs, uploads, batches, usage, and webhooks that wait."""
    from serinette.settings import SharedSettings, read  # noqa: PLC0415  # as heavy as a server, others are not
    from serinette.store import Store  # noqa: PLC0415  # as above
    from serinette.tenant_erasure import erase_tenant  # noqa: PLC0415  # as above

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
