"""What a tenant has used, and what it may."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, BeforeValidator, Field

from api.dependencies import AccountsPart, TenantPart
from api.problems import problems
from api.v1 import examples
from serinette.credentials import Limits
from serinette.errors import InvalidSpec
from serinette.usage import DAYS_KEPT, Day, Sums

router = APIRouter(prefix="/v1", tags=["usage"])

DEFAULT_DAYS = 30


def _written_out(text: object) -> object:
    # pydantic would read a number as seconds since 1970.
    if isinstance(text, str) and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        raise ValueError("must be a date like 2026-01-31")
    return text


QueryDay = Annotated[date | None, BeforeValidator(_written_out)]


class UsageView(BaseModel):
    """A tenant's usage by the UTC day on which its jobs ended."""

    tenant: str
    days: tuple[Day, ...] = Field(description="Oldest first; days without jobs are zeros.")
    total: Sums
    limits: Limits = Field(description="What the tenant may use; null is without bound.")


@router.get(
    "/usage",
    summary="What you used",
    responses={200: {"content": examples.USAGE}, **problems("invalid_spec", "queue_unavailable")},
)
async def usage(
    accounts: AccountsPart,
    tenant: TenantPart,
    since: Annotated[QueryDay, Query(description="First UTC day; else 29 days before `until`.")] = None,
    until: Annotated[QueryDay, Query(description="Last UTC day; else today.")] = None,
) -> UsageView:
    """GPU-seconds, queue seconds, bytes and jobs of each day. A job counts on the day it ends, once."""
    last = until or await accounts.today()
    first = since or last - timedelta(days=min(DEFAULT_DAYS - 1, (last - date.min).days))
    count = (last - first).days + 1
    if not 1 <= count <= DAYS_KEPT:
        raise InvalidSpec(
            f"since: must be at most {DAYS_KEPT - 1} days before until ({last}), not after", field="since"
        )
    days = await accounts.days(tenant, [first + timedelta(days=number) for number in range(count)])
    total = Sums()
    for day in days:
        total = total.plus(day)
    return UsageView(tenant=tenant, days=tuple(days), total=total, limits=await accounts.limits(tenant))
