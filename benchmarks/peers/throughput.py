"""Submits, polls and `/healthz` a second of our gateway, of FastAPI + Celery, of FastAPI + RQ and of bare FastAPI.

One after the other in turns, so that what else happens on the machine befalls all alike: the ratios within a round are
the result, the absolute figures belong to this machine and hour. Ours has keys, quotas and a durable submit; the peers
have none of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from redis import Redis

from benchmarks.peers.app import QUEUE
from benchmarks.peers.load import CONNECTIONS, Client, Request, load
from benchmarks.peers.servers import (
    LOAD_CORE,
    SERVER_CORE,
    append_only,
    cpu_s,
    durability_of,
    gateway,
    make_key,
    on_core,
    peer,
)
from benchmarks.record import Figures, spread

SONG = {"prompt": "jazz piano, smooth", "duration_s": 15}
SEED_SONG = {"prompt": "jazz piano, smooth", "audio_duration": 15.0}
WARM_UP_S = 0.5
Queued = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Turn:
    """What one server is asked in each round. `queued` counts the jobs that its submits have left in Valkey."""

    port: int
    request: Request
    queued: Queued | None = None

    def measured(self, seconds: float, others: Mapping[str, int]) -> dict[str, float]:
        """Answers a second, and microseconds of CPU that an answer took of the server and of `others`, by their ports;
        for submits each answer must have become a job.
        """
        before = self.queued() if self.queued else 0
        ports = {"server": self.port, **others}
        used_s = {name: -cpu_s(port) for name, port in ports.items()}
        answers, took_s = load(self.port, self.request, seconds)
        if self.queued and self.queued() - before != answers:
            raise RuntimeError(f"{answers} answers to {self.request.path}, and {self.queued() - before} jobs more")
        cpu_us = {f"{name}_cpu_us": (used_s[name] + cpu_s(port)) / answers * 1e6 for name, port in ports.items()}
        return {"per_s": answers / took_s, **cpu_us}


Turns = dict[str, dict[str, Turn]]


def turns_of_peers(ports: dict[str, int], redis: Redis) -> Turns:
    """Of app.py's servers."""
    lists: dict[str, Queued | None] = {
        "noop": None,
        "celery": lambda: int(redis.llen(QUEUE)),
        "rq": lambda: int(redis.llen(f"rq:queue:{QUEUE}")),
    }
    states = {"noop": "queued", "celery": "PENDING", "rq": "queued"}
    turns: Turns = {"submit": {}, "poll": {}, "healthz": {}}
    for name, port in ports.items():
        job_id = Client(port).ask("POST", "/jobs", SONG)["id"]
        turns["submit"][name] = Turn(port, Request("POST", "/jobs", 202, '"id"', SONG), lists[name])
        turns["poll"][name] = Turn(port, Request("GET", f"/jobs/{job_id}", 200, states[name]))
    turns["healthz"]["noop"] = Turn(ports["noop"], Request("GET", "/healthz", 200, '"status"'))
    return turns


def turns_of_ours(ports: dict[str, int], key: str, redis: Redis) -> Turns:
    """Of our gateway, by its `durability`; the seed's dialect is asked where that is fsync."""
    lane = "rq:queue:default.normal"

    def queued() -> int:
        return int(redis.llen(lane))

    fsync = ports["fsync"]
    job_id = Client(fsync, key).ask("POST", "/v1/jobs", SONG)["id"]
    submits = {
        f"serinette_{durability}": Turn(port, Request("POST", "/v1/jobs", 202, '"queued"', SONG, key), queued)
        for durability, port in ports.items()
    }
    seed = Request("POST", "/generate_music_async", 200, '"request_id"', SEED_SONG, key)
    return {
        "submit": {**submits, "serinette_seed_dialect": Turn(fsync, seed, queued)},
        "poll": {"serinette": Turn(fsync, Request("GET", f"/v1/jobs/{job_id}", 200, "queued", None, key))},
        "healthz": {"serinette": Turn(fsync, Request("GET", "/healthz", 200, '"status"'))},
    }


def compared(rounds: dict[str, list[dict[str, float]]]) -> Figures:
    """What was measured of each server, and the ratios of its rate to those that had their turn in the same rounds."""
    rates = {name: [each["per_s"] for each in own] for name, own in rounds.items()}
    bases = {f"to_{base}": rates[base] for base in ("noop", "celery") if base in rates}
    return {
        name: {
            **{figure: spread([each[figure] for each in own], 1) for figure in own[0]},
            **{to: spread([a / b for a, b in zip(rates[name], base, strict=True)]) for to, base in bases.items()},
        }
        for name, own in rounds.items()
    }


def measure(rounds: int = 5, round_s: float = 3.0, appendfsync: str = "always") -> Figures:
    """Rounds of all servers in turn, for each of the three kinds of request."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        redis = stack.enter_context(append_only(directory / "valkey", appendfsync))
        stack.enter_context(on_core(LOAD_CORE))
        peers = {name: stack.enter_context(peer(name, redis)) for name in ("noop", "celery", "rq")}
        key = make_key(redis, directory)
        ours = {name: stack.enter_context(gateway(directory, redis, name)) for name in ("fsync", "process")}
        turns = turns_of_peers(peers, redis)
        for kind, more in turns_of_ours(ours, key, redis).items():
            turns[kind] |= more
        others = {"valkey": int(redis.connection_pool.connection_kwargs["port"])}
        found: dict[str, dict[str, list[dict[str, float]]]] = {
            kind: {name: [] for name in turns[kind]} for kind in turns
        }
        for number in range(rounds + 1):  # the first one warms up, uncounted
            for kind, servers in turns.items():
                for name, turn in servers.items():
                    figures = turn.measured(round_s if number else WARM_UP_S, others)
                    found[kind][name] += [figures] if number else []
        return {
            "rounds": rounds,
            "round_s": round_s,
            "connections": CONNECTIONS,
            "cores": {"server": SERVER_CORE, "valkey_and_load": LOAD_CORE},
            "valkey": durability_of(redis),
            **{kind: compared(each) for kind, each in found.items()},
        }
