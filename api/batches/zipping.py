"""Songs of a batch as one zip, made while it is sent: in memory is one chunk of one song."""

from __future__ import annotations

import zipfile
from collections.abc import AsyncIterator
from typing import cast

from serinette.batch import BatchLine
from serinette.errors import NotFound
from serinette.job import Artifact
from serinette.store import Store

# The earliest that a zip can hold: the same songs make the same zip.
_AT = (1980, 1, 1, 0, 0, 0)


class _Drain:
    """A file that is written to and then emptied. It cannot be sought, so the zip has sizes behind each song."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._chunks.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def empty(self) -> bytes:
        chunks, self._chunks = self._chunks, []
        return b"".join(chunks)


def member_name(line: BatchLine, song: Artifact) -> str:
    """The file of one song: `000017.mp3`, `000017-2.mp3` of a further variation; behind the line its custom id."""
    kept = "".join(char if char.isalnum() or char in "._-" else "_" for char in line.custom_id or "")
    parts = [f"{line.line:06}", *([kept] if kept else []), *([str(song.index)] if song.index else [])]
    return f"{'-'.join(parts)}.{song.format}"


async def zipped(store: Store, lines: AsyncIterator[BatchLine]) -> AsyncIterator[bytes]:
    """The zip's bytes. Songs that were erased meanwhile are left out, and named in `missing.txt`."""
    drain, missing = _Drain(), []
    with zipfile.ZipFile(cast("zipfile._ZipWritable", drain), "w", zipfile.ZIP_STORED) as archive:
        async for line in lines:
            for song in line.artifacts:
                name = member_name(line, song)
                try:
                    chunks = store.stream(song.key)
                    first = await anext(chunks)
                except NotFound:
                    missing.append(name)
                    continue
                with archive.open(zipfile.ZipInfo(name, _AT), "w") as member:
                    member.write(first)
                    async for chunk in chunks:
                        member.write(chunk)
                        yield drain.empty()
                yield drain.empty()
        if missing:
            archive.writestr("missing.txt", "\n".join(missing) + "\n")
    yield drain.empty()
