"""Whether every promise was kept: a pure judgment over what was found after a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tests.chaos.ledger import ENDED, Promise
from tests.chaos.plan import Cancel

# A 202 in flight when Valkey died arrives at most this late.
_LATE_S = 10.0


class Fault(StrEnum):
    """Kinds of broken promises."""

    LOST = "lost"
    STUCK = "stuck"
    DUPLICATED = "duplicated"
    WRONG = "wrong end"  # neither meant nor asked for


@dataclass(frozen=True, slots=True)
class Found:
    """One job after the run: what the gateway answers, what Redis has of it, what the store holds.

    Artifacts are SHA-256 digests by object key.
    """

    promise: Promise
    status: str | None = None  # None: the gateway does not know it
    answered: Mapping[str, str] = field(default_factory=dict)
    recorded: Mapping[str, str] | None = None  # None: no job.json
    stored: Mapping[str, str] = field(default_factory=dict)  # of the bytes themselves
    terminal_events: Sequence[str] = ()
    webhook_ids: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken promise."""

    fault: Fault
    order: int
    why: str


Span = tuple[float, float]


def judge(found: Found, forgotten: Sequence[Span], *, fsync: bool = False) -> Iterator[Finding]:
    """All that is wrong with one job. `forgotten`: spans of Unix seconds in which Valkey lost what it had written; with
    `durability: fsync` no job that was accepted in them is among that.
    """
    for fault, rule in (
        (Fault.LOST, _lost),
        (Fault.STUCK, _stuck),
        (Fault.DUPLICATED, _duplicated),
        (Fault.WRONG, _wrong),
    ):
        for why in rule(found, () if fsync and fault is Fault.LOST else forgotten):
            yield Finding(fault, found.promise.order.number, why)


def _lost(found: Found, forgotten: Sequence[Span]) -> Iterator[str]:
    promise = found.promise
    # Submitted and ended without a song in one span that Valkey forgot: only its client knows of it.
    ended = {_span(promise.accepted_at, forgotten)} & {
        _span(at, forgotten) for status, at in promise.ends if status != "succeeded"
    }
    if found.status is None and not ended - {None}:
        yield "the gateway does not know it"
    for at in promise.forgotten:
        if _span(at, forgotten) is None:
            yield "it was accepted, and unknown later, though Valkey had forgotten nothing of that time"
    if found.status == "succeeded":
        yield from (f"its song {key} is not in the store" for key in found.answered if key not in found.stored)
        if not found.answered:
            yield "it succeeded without a song"


def _stuck(found: Found, _forgotten: Sequence[Span]) -> Iterator[str]:
    if found.status is not None and found.status not in ENDED:
        yield f"it is {found.status} for ever"


def _duplicated(found: Found, forgotten: Sequence[Span]) -> Iterator[str]:
    # An event that Valkey forgot comes again; a client has then heard it twice.
    lasting = [kind for kind, at in found.promise.terminal_events if _span(at, forgotten) is None]
    for events, where in ((found.terminal_events, "in its stream"), (lasting, "received")):
        if len(events) > 1:
            yield f"{len(events)} terminal events {where}: {', '.join(events)}"
    if len(found.webhook_ids) > 1:
        yield f"{len(found.webhook_ids)} webhook ids: {', '.join(sorted(found.webhook_ids))}"
    # Only an end reported in a span that Valkey forgot may be reported differently later.
    for status, at in found.promise.ends:
        if found.status not in {status, None} and _span(at, forgotten) is None:
            yield f"it was reported to have {status}, and has {found.status}"
    recorded = found.recorded or {}
    yield from (f"a second artifact: {key}" for key in found.stored if key not in recorded)
    yield from (
        f"{key} is not what its record says"
        for key, digest in recorded.items()
        if key in found.stored and found.stored[key] != digest
    )
    if found.status == "succeeded" and dict(found.answered) != dict(recorded):
        yield "the record and the gateway name different songs"


def _wrong(found: Found, _forgotten: Sequence[Span]) -> Iterator[str]:
    order = found.promise.order
    meant = {"succeeded"} if order.nature.succeeds else {"failed"}
    if order.cancel is not Cancel.NEVER:
        meant |= {"canceled"}
    if found.status in ENDED and found.status not in meant:
        yield f"it has {found.status}, and was meant to have {' or '.join(sorted(meant))}"


def _span(at: float, forgotten: Sequence[Span]) -> Span | None:
    """The span in which Valkey forgot what it wrote at this time, if there is one. An answer may have come late."""
    return next(((since, until) for since, until in forgotten if since <= at <= until + _LATE_S), None)
