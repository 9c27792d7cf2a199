"""What a tenant has used, and what it may."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, BeforeValidator, Field

from api.dependencies import ContextPart
from serinette.credentials import Limits
from serinette.errors import InvalidSpec
from serinette.names import Right
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
    rights: tuple[Right, ...] = Field(description="What this key may do beside what all keys may.")


@router.get("/usage", summary="What you used")
async def get_usage(
    context: ContextPart,
    since: Annotated[QueryDay, Query(description="First UTC day; else 29 days before `until`.")] = None,
    until: Annotated[QueryDay, Query(description="Last UTC day; else today.")] = None,
) -> UsageView:
    """GPU-seconds, queue seconds, bytes and jobs of each day. A job counts on the day it ends, once."""
    accounts, tenant = context.parts.accounts, context.tenant
    days = await accounts.days(tenant, span_of(since, until, await accounts.today(), DAYS_KEPT))
    limits, rights = await accounts.limits(tenant), context.caller.rights
    return UsageView(tenant=tenant, days=tuple(days), total=total_of(days), limits=limits, rights=rights)


def span_of(since: date | None, until: date | None, today: date, most: int) -> list[date]:
    """The days of a query. Raises InvalidSpec: there are none of them, or too many."""
    last = until or today
    first = since or last - timedelta(days=min(DEFAULT_DAYS - 1, (last - date.min).days))
    count = (last - first).days + 1
    if not 1 <= count <= most:
        raise InvalidSpec(f"since: must be at most {most - 1} days before until ({last}), not after", field="since")
    return [first + timedelta(days=number) for number in range(count)]


def total_of(days: Iterable[Day]) -> Sums:
    """The sum of all."""
    total = Sums()
    for day in days:
        total = total.plus(day)
    return total
