"""What a run will do: who submits which songs, and what is killed when. Pure: the same seed plans the same run.

Moments are numbers of accepted jobs, not seconds, so that a slow machine kills the same parts in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random

TENANTS = ("acme", "blue", "coda")


class Part(StrEnum):
    """What is killed, or has no room for a while."""

    GATEWAY = "gateway"
    SUPERVISOR = "supervisor"
    SLOT = "slot"
    ENGINE = "engine"
    CONTROLLER = "controller"
    VALKEY = "valkey"
    STORE = "store"
    FULL_VALKEY = "full valkey"
    FULL_STORE = "full store"

    @property
    def is_full(self) -> bool:
        """Whether its process lives, and takes nothing more."""
        return self in {Part.FULL_VALKEY, Part.FULL_STORE}


class Nature(StrEnum):
    """How a song behaves in the engine, and so how its job is meant to end."""

    GOOD = "good"
    SLOW = "slow"
    CRASH_ONCE = "crash once"  # kills its engine, once a pod
    POISON = "nan"  # fails, and would again
    KILLER = "crash"  # kills every engine it meets

    @property
    def succeeds(self) -> bool:
        """Whether it is meant to end with a song."""
        return self not in {Nature.POISON, Nature.KILLER}


class Cancel(StrEnum):
    """When its client cancels it."""

    NEVER = "never"
    AT_ONCE = "at once"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Order:
    """One job that a client will submit. The key is its Idempotency-Key: tenants use the same ones."""

    number: int
    client: int
    tenant: str
    key: str
    prompt: str
    nature: Nature
    lane: str = "normal"
    webhook: bool = False
    cancel: Cancel = Cancel.NEVER
    listens: bool = False  # by Server-Sent Events, resumed wherever they break off, instead of polling


@dataclass(frozen=True, slots=True)
class Fault:
    """One part killed outright, and started again after `down_s`; or without room for so long.

    It strikes as soon as `after` jobs are accepted and the part holds work. `forgets`: the Valkey comes back without
    the last second of what it had written.
    """

    after: int
    part: Part
    down_s: float = 0.0
    forgets: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a run is. `slow_s` is the length of a slow song: long enough for a part to be seen at work."""

    kills: Mapping[Part, int]
    forgets: int
    outage_s: float
    slow_s: float
    down_s: float = 2.0
    clients: int = 4
    window: int = 10  # unfinished jobs of one client


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run."""

    orders: tuple[Order, ...]
    faults: tuple[Fault, ...]


def plan(seed: int, count: int, scale: Scale) -> Plan:
    """`count` orders and the faults between them."""
    chance = Random(seed)
    return Plan(tuple(_order(number, scale, chance) for number in range(count)), _faults(count, scale, chance))


def _order(number: int, scale: Scale, chance: Random) -> Order:
    # In every ten jobs: five good, two slow ones that parts can be caught with, and the others by chance.
    nature = {1: Nature.SLOW, 6: Nature.SLOW}.get(number % 10, Nature.GOOD)
    if number % 10 in {3, 8}:
        nature = chance.choices([Nature.GOOD, Nature.POISON, Nature.CRASH_ONCE, Nature.KILLER], [8, 6, 4, 1])[0]
    words = {
        Nature.SLOW: f"slow {scale.slow_s:g}",
        Nature.CRASH_ONCE: f"crash once token{number}",
        Nature.POISON: "nan",
        Nature.KILLER: "crash",
    }.get(nature, f"slow {chance.choice([0.05, 0.2, 0.4])}")
    cancel = chance.choices(list(Cancel), [8, 1, 1])[0] if nature in {Nature.GOOD, Nature.SLOW} else Cancel.NEVER
    return Order(
        number=number,
        client=number % scale.clients,
        tenant=TENANTS[number % len(TENANTS)],
        key=f"song-{number // len(TENANTS)}",
        prompt=f"{words} number {number}",
        nature=nature,
        lane=chance.choices(["normal", "high", "low"], [6, 2, 2])[0],
        webhook=chance.random() < 0.5,
        cancel=cancel,
        listens=chance.random() < 0.3,
    )


def _faults(count: int, scale: Scale, chance: Random) -> tuple[Fault, ...]:
    """Spread over the first three quarters of the orders, so that there is work left to be caught with.

    Valkey's kills come first with its file intact, then without its last second; the store's first is the long one.
    """
    parts = [part for part, number in scale.kills.items() for _ in range(number)]
    chance.shuffle(parts)
    first, last = max(2, count // 20), count * 3 // 4
    faults, seen = [], dict.fromkeys(Part, 0)
    for place, part in enumerate(parts):
        after = first + (last - first) * place // max(1, len(parts) - 1)
        down_s = chance.uniform(scale.down_s / 2 if part.is_full else 0, scale.down_s)
        if part is Part.STORE and seen[part] == 0:
            down_s = scale.outage_s
        forgets = part is Part.VALKEY and seen[part] >= scale.kills[part] - scale.forgets
        faults.append(Fault(after, part, round(down_s, 1), forgets))
        seen[part] += 1
    return tuple(faults)
