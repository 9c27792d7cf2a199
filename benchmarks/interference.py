"""What one tenant's key, whatever it does within its bounds, adds to another's submit and poll.

One gateway with keys and one Valkey that flushes every write to disk; no worker. A quiet tenant submits and polls one
request after the other. In each round it does so alone, and beside each kind of abuse in turn, which a process of its
own sends: what else happens on the machine befalls all alike. The target, by the median of the rounds: at the 95th
percentile no more than twice what it is alone, and 20 ms.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from redis import Redis

from benchmarks.gateway_load import gateway
from benchmarks.record import Figures, spread
from serinette import credentials
from serinette.names import Keys
from tests.unit.sounds import silence

SONG = {"prompt": "jazz piano, smooth", "duration_s": 15}
ROUNDS = 5
ROUND_S = 4.0
TOGETHER = 8
STREAMS = 200
ADDED_MS = 20.0
TIMES = 2.0

Abuse = Callable[[httpx.AsyncClient], Awaitable[object]]


def form(fields: int) -> tuple[bytes, dict[str, str]]:
    """A form of text fields that is a megabyte long, and its media type."""
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="x"\r\n\r\n'.encode()
    body = (head + b"x" * (1_000_000 // fields) + b"\r\n") * fields + f"--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


async def _upload(http: httpx.AsyncClient) -> None:
    await http.post("/v1/uploads", content=_SOUND)


async def _batch(http: httpx.AsyncClient) -> None:
    line = json.dumps(SONG).encode() + b"\n"
    answer = await http.post("/v1/batches", content=line * 5_000, headers={"Content-Type": "application/jsonl"})
    if answer.status_code == httpx.codes.ACCEPTED:
        await http.post(f"/v1/batches/{answer.json()['id']}/cancel")


async def _list(http: httpx.AsyncClient) -> None:
    await http.get("/v1/jobs", params={"limit": 100, "label": "no=such"})


async def _long_body(http: httpx.AsyncClient) -> None:
    await http.post("/v1/jobs", json={"tracks": [2] * 300_000})


async def _deep_body(http: httpx.AsyncClient) -> None:
    await http.post("/v1/jobs", content=b'{"a":' * 100_000, headers={"Content-Type": "application/json"})


async def _form(http: httpx.AsyncClient) -> None:
    content, headers = form(100)
    await http.post("/release_task", content=content, headers=headers)


async def _submit(http: httpx.AsyncClient) -> None:
    await http.post("/v1/jobs", json=SONG)


async def _streams(http: httpx.AsyncClient) -> None:
    job_id = (await http.post("/v1/jobs", json=SONG)).json()["id"]

    async def follow() -> None:
        with suppress(httpx.HTTPError):
            await http.get(f"/v1/jobs/{job_id}/events", timeout=ROUND_S)

    await asyncio.gather(*(follow() for _ in range(STREAMS)))


ABUSES: dict[str, Abuse] = {
    "uploads": _upload,
    "batches": _batch,
    "lists": _list,
    "long_bodies": _long_body,
    "deep_bodies": _deep_body,
    "forms": _form,
    "submits": _submit,
    "event_streams": _streams,
}
_SOUND = b""


def abuse(name: str, url: str, key: str) -> None:
    """Send one kind of abuse until this process is ended."""
    global _SOUND  # noqa: PLW0603  # made in this process, before it sends
    _SOUND = silence(60) if name == "uploads" else b""

    async def one(http: httpx.AsyncClient) -> None:
        while True:
            with suppress(httpx.HTTPError, KeyError, ValueError):
                await ABUSES[name](http)

    async def all_of_them() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits, trust_env=False) as http:
            await asyncio.gather(*(one(http) for _ in range(1 if name == "event_streams" else TOGETHER)))

    asyncio.run(all_of_them())


@contextmanager
def abused(name: str | None, url: str, key: str) -> Iterator[None]:
    """While this kind of abuse goes on."""
    if name is None:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=abuse, args=(name, url, key), daemon=True)
    process.start()
    time.sleep(2)  # until it sends
    try:
        yield
    finally:
        process.kill()
        process.join()


def timed_ms(url: str, key: str, round_s: float) -> dict[str, float]:
    """95th percentiles of a quiet tenant's submits and polls, in milliseconds."""
    taken: dict[str, list[float]] = {"submit": [], "poll": []}
    until_s = time.perf_counter() + round_s
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False) as http:
        while time.perf_counter() < until_s:
            began_s = time.perf_counter()
            job = http.post("/v1/jobs", json=SONG).raise_for_status().json()
            between_s = time.perf_counter()
            http.get(f"/v1/jobs/{job['id']}").raise_for_status()
            taken["submit"].append(between_s - began_s)
            taken["poll"].append(time.perf_counter() - between_s)
            time.sleep(0.01)
    return {name: round(1_000 * spread(values)["p95"], 3) for name, values in taken.items()}


def measure(rounds: int = ROUNDS, round_s: float = ROUND_S) -> Figures:
    """So many rounds: alone, then beside each kind of abuse."""
    ways: list[str | None] = [None, *ABUSES]
    seen: dict[str | None, dict[str, list[float]]] = {way: {"submit": [], "poll": []} for way in ways}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as directory,
        gateway(Path(directory), SERINETTE_AUTH="true") as (port, redis_url),
    ):
        url = f"http://127.0.0.1:{port}"
        quiet, greedy = keys_of(redis_url)
        timed_ms(url, quiet, 1)  # warms up, uncounted
        for _ in range(rounds):
            for way in ways:
                with abused(way, url, greedy):
                    for name, value in timed_ms(url, quiet, round_s).items():
                        seen[way][name].append(value)
    return {"rounds": rounds, "round_s": round_s, "together": TOGETHER, "streams": STREAMS, **judged(seen)}


def keys_of(redis_url: str) -> tuple[str, str]:
    """Keys of a quiet and a greedy tenant."""
    with Redis.from_url(redis_url) as redis:
        made = [credentials.new_key(tenant) for tenant in ("quiet", "greedy")]
        for _, kept in made:
            credentials.save(redis, Keys(), kept)
    return made[0][0], made[1][0]


def judged(seen: dict[str | None, dict[str, list[float]]]) -> Figures:
    """The 95th percentiles of each round, and what the median is above the bound; below it is negative."""
    alone = seen[None]
    figures: Figures = {"alone_p95_ms": {name: spread(values, 2) for name, values in alone.items()}}
    for way, taken in seen.items():
        if way is None:
            continue
        figures[way] = {
            name: {
                "p95_ms": spread(values, 2),
                "above_bound_ms": round(
                    statistics.median(values) - TIMES * statistics.median(alone[name]) - ADDED_MS, 2
                ),
            }
            for name, values in taken.items()
        }
    worst = max(figures[way][name]["above_bound_ms"] for way in ABUSES for name in alone)
    return {**figures, "worst_above_bound_ms": worst, "met": worst <= 0}
