"""Thousands of songs through one `serinette up`: what they leave in memory, Redis and store.

The bundled checkpoint generates songs of one to three seconds in every format, eight at a time; every fiftieth is
canceled. Before and after them all is waited for that retention deletes: what has grown then, has leaked. Between
them each process's memory is read after every 500 songs: a leak goes on, what merely fills ends.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from redis import Redis

from benchmarks.record import Figures
from serinette.client import Client
from serinette.errors import SerinetteError
from serinette.spec import AudioFormat, GenerationSpec
from tests.up import Up

SONGS = 3_000
WARM_UP = 300
EVERY = 500
TOGETHER = 8
RETENTION_S = 60
_SETTLED_S = 600.0
_CALM = 20  # looks, a second apart
_ROLES = {
    "api": "gateway",
    "controller": "controller",
    "gpu_worker.slot": "slots",
    "gpu_worker.engine": "engine",
    "gpu_worker": "worker",
    "valkey-server": "valkey",
}


def measure(songs: int = SONGS) -> Figures:
    """Before and after so many songs; on two calm cores half an hour for 3,000."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        up = Up.start(Path(directory) / "data", environment={"SERINETTE_RETENTION_S": str(RETENTION_S)})
        try:
            _generate(up.url, range(WARM_UP))
            before, began_s = _settled(up), time.monotonic()
            ended: Counter[str] = Counter()
            meanwhile: list[Figures] = []
            for done in range(0, songs, EVERY):
                numbers = range(WARM_UP + done, WARM_UP + min(done + EVERY, songs))
                ended += _generate(up.url, numbers)
                meanwhile.append({"songs": done + len(numbers), "memory_mib": _memory_mib(up)})
            wall_s, after = time.monotonic() - began_s, _settled(up)
            up.end()
        finally:
            up.clean_up()
    halfway = meanwhile[(len(meanwhile) - 1) // 2]["memory_mib"]
    return {
        "songs": songs,
        "ended": dict(ended),
        "lost": songs - ended["succeeded"] - ended["canceled"],
        "wall_s": round(wall_s, 1),
        "before": before,
        "meanwhile": meanwhile,
        "after": after,
        "grown_keys": after["keys"] - before["keys"],
        "grown_redis_bytes": after["redis_bytes"] - before["redis_bytes"],
        "grown_files": after["files"] - before["files"],
        "grown_mib": _growth(before["memory_mib"], after["memory_mib"]),
        "grown_mib_in_the_second_half": _growth(halfway, after["memory_mib"]),
    }


def _growth(before: Figures, after: Figures) -> Figures:
    return {role: round(sum(after[role]) - sum(held), 1) for role, held in before.items()}


def _generate(url: str, numbers: range) -> Counter[str]:
    """Ends of so many songs."""
    with (
        Client(url) as client,
        tempfile.TemporaryDirectory() as directory,
        ThreadPoolExecutor(TOGETHER) as threads,
    ):
        return Counter(threads.map(partial(_song, client, Path(directory)), numbers))


def _song(client: Client, directory: Path, number: int) -> str:
    formats = tuple(AudioFormat)
    spec = GenerationSpec(prompt="calm piano", duration_s=1 + number % 3, format=formats[number % len(formats)])
    try:
        job = client.submit(spec)
        if number % 50 == 0:
            client.cancel(job.id)
        ended = client.wait(job.id)
        if ended.result:
            client.download(ended, directory / f"{number}.song")
            (directory / f"{number}.song").unlink()
    except SerinetteError as error:
        return type(error).__name__
    return str(ended.status)


def _settled(up: Up) -> Figures:
    """What there is once retention has deleted all songs and nothing changes for a while."""
    redis, store = _redis(up), up.data_dir / "store"
    seen: list[int] = []
    until_s = time.monotonic() + _SETTLED_S
    while time.monotonic() < until_s and (_files(store) or len(seen) < _CALM or len(set(seen[-_CALM:])) > 1):
        seen.append(redis.dbsize())
        time.sleep(1)
    return {
        "keys": redis.dbsize(),
        "redis_bytes": redis.info("memory")["used_memory"],
        "files": _files(store),
        "memory_mib": _memory_mib(up),
    }


def _redis(up: Up) -> Redis:
    return Redis(unix_socket_path=str(up.data_dir / "valkey.sock"))


def _files(store: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(store))  # folders may go meanwhile


def _memory_mib(up: Up) -> dict[str, list[float]]:
    """Anonymous memory of each process, by kind. Not pages of files: how many of those count depends on neighbors."""
    held: defaultdict[str, list[float]] = defaultdict(list)
    for process in up.family():
        names = {Path(word).name for word in " ".join(process.cmdline()).split()}
        role = next((role for name, role in _ROLES.items() if name in names), "up")
        status = Path(f"/proc/{process.pid}/status").read_text()
        held[role].append(round(int(status.partition("RssAnon:")[2].split()[0]) / 1024, 1))
    return {role: held[role] for role in sorted(held)}
