"""A Valkey's append-only file, and how it is made to forget its last second."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

# `aof-timestamp-enabled yes` writes one before the first command of each second.
_STAMP = re.compile(rb"(?:^|\r\n)#TS:(\d+)\r\n")

CONFIG = """\
bind 127.0.0.1
port {port}
dir {directory}
save ""
appendonly yes
appendfsync {appendfsync}
aof-timestamp-enabled yes
auto-aof-rewrite-percentage 0
maxmemory-policy noeviction
stream-node-max-bytes 512
"""


def write_config(directory: Path, port: int, appendfsync: str) -> Path:
    """The configuration of a Valkey that keeps such a file, in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "valkey.conf"
    path.write_text(CONFIG.format(port=port, directory=directory, appendfsync=appendfsync))
    return path


# A submit's place in RQ's list, among the effects of its transition, which end with EXEC (serinette/jobs).
_SUBMITTED = re.compile(
    rb"\r\nRPUSH\r\n\$\d+\r\n[^\r]*:queue:[^\r]*\r\n\$36\r\n([0-9a-f-]{36})\r\n(?s:.*?)\r\nEXEC\r\n"
)


def forget(directory: Path, died_at: float, on_disk: Collection[str] = ()) -> float:
    """Cut off what the Valkey of `directory` wrote in the last second before it died, at least; since when.

    Times are Unix seconds. The server must not run. `on_disk`: jobs that it said were on its disk; what was written
    before that is kept, and as much more as falls into an earlier second.
    """
    (file,) = (directory / "appendonlydir").glob("*.incr.aof")
    written = file.read_bytes()
    cut = cut_at(written, died_at)
    if cut is None:
        return died_at
    place, since = cut
    with file.open("r+b") as opened:
        opened.truncate(max(place, surely_on_disk(written, on_disk)))
    return since


def surely_on_disk(written: bytes, job_ids: Collection[str]) -> int:
    """How much of the file is known to be on disk, when it was answered for these jobs that they are."""
    marks = (match.end() for match in _SUBMITTED.finditer(written) if match[1].decode() in job_ids)
    return max(marks, default=0)


def cut_at(written: bytes, died_at: float) -> tuple[int, float] | None:
    """Where to cut, and the Unix second of the first write behind it; None if nothing was written after its start."""
    found: tuple[int, float] | None = None
    for match in _STAMP.finditer(written):
        place = match.start() if match.start() == 0 else match.start() + 2
        if int(match[1]) <= died_at - 1 or found is None:
            found = place, float(match[1])
        else:
            break
    return found
