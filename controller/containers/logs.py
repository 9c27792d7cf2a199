"""Which lines of a container's log are new, and where it is cut. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

# In place of the time of the last line: later than all times, so that nothing more is read.
CUT = "~"
# As the kubelet writes it; what a node says in place of a log ("unable to retrieve ...") begins otherwise.
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}")
# Of a chunk, what its event tells; the whole is in the log.
EVENT_CHARACTERS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Chunk:
    """Lines to add. `last` is the time of the last of them."""

    text: str
    last: str


def cut_words(most_bytes: int) -> str:
    """The last line of a log that is longer than what is kept."""
    return f"[serinette: the log is longer than the {most_bytes} bytes that are kept; the rest is cut]\n"


def fresh(told: str, after: str, size_bytes: int, most_bytes: int, *, ended: bool = True) -> Chunk | None:
    """The lines behind those of time `after`, each line of `told` behind its time; None without any. Until it has
    `ended`, the last is taken only if it is whole: the rest of it would come under the same time.

    `size_bytes` of the log are kept already, and `most_bytes` may be, the words that it is cut not counted.
    """
    if size_bytes >= most_bytes:
        return None
    lines: list[str] = []
    last, room = after, most_bytes - size_bytes
    # Not splitlines(): what follows a progress bar's carriage return is no line of the log, and begins with no time.
    *whole, rest = told.split("\n")
    for line in (*whole, rest) if ended and rest else whole:
        time, behind, text = line.partition(" ")
        if time <= after or not behind or not _TIME.match(time):
            continue
        room -= len(text.encode()) + 1
        if room < 0:
            return Chunk("".join(lines) + cut_words(most_bytes), CUT)
        lines.append(text + "\n")
        last = time
    return Chunk("".join(lines), last) if lines else None
