"""Which lines of a batch are still to be fetched, and under which names their songs lie. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serinette.client.answers import BatchLine, LineSong
from serinette.client.batch_calls import PAGE_LINES

_ODD = re.compile(r"[^\w.-]")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A line that has ended, and its songs where they lie now."""

    line: BatchLine
    files: tuple[Path, ...]


class Harvest:
    """Lines that have not been seen to end. Lines are released in their order, so what lies far behind can wait."""

    def __init__(self, total: int) -> None:
        firsts = range(1, total + 1, PAGE_LINES)
        self._open = {page: set(range(at, min(at + PAGE_LINES, total + 1))) for page, at in enumerate(firsts)}
        self._released = False

    def pages(self) -> Iterator[int]:
        """First lines of the pages to look at; ends behind one of which nothing was released."""
        for page in list(self._open):
            self._released = False
            yield min(self._open[page])
            if not self._released:
                return

    def take(self, lines: tuple[BatchLine, ...]) -> list[BatchLine]:
        """What a look found: the lines that have ended since the last one."""
        ended = []
        for line in lines:
            self._released = self._released or line.status != "pending"
            page = (line.line - 1) // PAGE_LINES
            if line.ended and line.line in self._open.get(page, ()):
                self._open[page].discard(line.line)
                ended.append(line)
                if not self._open[page]:
                    del self._open[page]
        return ended

    @property
    def done(self) -> bool:
        """Whether all lines were seen to end."""
        return not self._open


def song_name(line: BatchLine, song: LineSong) -> str:
    """000017-yourname.mp3, and 000017-yourname-1.mp3 for its second song: as in the gateway's own songs.zip."""
    words = [f"{line.line:06d}", _ODD.sub("_", line.custom_id or "")]
    words.append(str(song.index) if song.index else "")
    return "-".join(filter(None, words)) + f".{song.format}"


def is_there(path: Path, song: LineSong) -> bool:
    """Whether a song was fetched before."""
    return path.is_file() and path.stat().st_size == song.size_bytes
