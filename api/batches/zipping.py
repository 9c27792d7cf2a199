"""Songs of a batch as one zip, made while it is sent: in memory is one chunk of one song."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from api.downloads import OtherFile
from serinette.batch import BatchLine
from serinette.errors import NotFound
from serinette.job import Artifact
from serinette.store import Store

# The earliest that a zip can hold: the same songs make the same zip.
_AT = (1980, 1, 1, 0, 0, 0)
_MISSING = "missing.txt"
ZIP = "application/zip"
# Reads of the store at a time.
_READERS = 16
# Songs whose presence is looked up before their zip is sent.
MOST_MEASURED = 2_000


class _Buffer:
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


Member = tuple[str, Artifact]


async def members_of_file(store: Store, key: str) -> AsyncIterator[Member]:
    """Each song of an output file's lines, with its name in the zip."""
    rest = b""
    async for chunk in store.stream(key):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in map(BatchLine.model_validate_json, whole):
            for song in line.artifacts:
                yield line.file_name(song), song


async def zipped(
    store: Store, members: AsyncIterator[Member], missing: Sequence[str] | None = None
) -> AsyncIterator[bytes]:
    """The zip's bytes. Songs that were erased meanwhile are left out, and named in `missing.txt`: those of `missing` if
    that is given, and then every other one must be there.

    Raises:
        NotFound: one of them was erased since.
    """
    buffer, left_out = _Buffer(), list(missing or ())
    with zipfile.ZipFile(cast("zipfile._ZipWritable", buffer), "w", zipfile.ZIP_STORED) as archive:
        async for name, song in members:
            try:
                chunks = store.stream(song.key)
                first = await anext(chunks)
            except NotFound:
                if missing is not None:
                    raise
                left_out.append(name)
                continue
            with archive.open(zipfile.ZipInfo(name, _AT), "w") as member:
                member.write(first)
                async for chunk in chunks:
                    member.write(chunk)
                    yield buffer.empty()
            yield buffer.empty()
        if left_out:
            archive.writestr(zipfile.ZipInfo(_MISSING, _AT), _listed(left_out))
    yield buffer.empty()


def _listed(names: Sequence[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


@dataclass(frozen=True, slots=True)
class Archive(OtherFile):
    """The zip of few enough songs to see before it is made which of them are there: its length is known."""

    store: Store
    members: Sequence[Member]
    missing: Sequence[str]

    @classmethod
    def of(cls, store: Store, members: Sequence[Member], output: OtherFile) -> Archive:
        """The zip of the songs of an output file."""
        with ThreadPoolExecutor(_READERS) as readers:
            there = list(readers.map(lambda member: _is_there(store, member[1].key), members))
        missing = [name for (name, _), found in zip(members, there, strict=True) if not found]
        kept = [member for member, found in zip(members, there, strict=True) if found]
        sizes = [(name, song.size_bytes) for name, song in kept]
        sizes += [(_MISSING, len(_listed(missing)))] if missing else []
        etag = f"{_tag(output.etag)}-{_tag(*missing)}"
        return cls(output.key, _zip_bytes(sizes), etag, ZIP, store, kept, missing)

    async def between(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Its bytes from `start` to `end`, exclusive. What is before is made too: a zip ends with its files' checksums.

        Raises:
            NotFound: a song was erased since.
        """

        async def kept() -> AsyncIterator[Member]:
            for member in self.members:
                yield member

        at = 0
        async for chunk in zipped(self.store, kept(), self.missing):
            if part := chunk[max(start - at, 0) : max(end - at, 0)]:
                yield part
            at += len(chunk)


def _tag(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def archive_held(output: OtherFile, if_none_match: str | None) -> str | None:
    """The ETag by which a client has a zip of this output; None if it has none. Its zip holds what a new one would,
    and songs that were erased since, so that no song needs to be looked up to tell.
    """
    found = re.search(rf'"{_tag(output.etag)}-[0-9a-f]{{24}}"', if_none_match or "")
    return found[0] if found else None


def _is_there(store: Store, key: str) -> bool:
    try:
        store.head(key)
    except NotFound:
        return False
    return True


def _zip_bytes(members: Sequence[tuple[str, int]]) -> int:
    """Length of what `zipped` writes of files by name and size: for each a local header, the data, a descriptor and an
    entry in the directory, then the directory's end (APPNOTE.TXT 4.3), with the 64-bit forms where zipfile takes them.
    """
    before = directory = 0
    for name, size_bytes in members:
        name_bytes = len(name.encode())
        directory += 46 + name_bytes + (12 if before > zipfile.ZIP64_LIMIT else 0)
        before += 30 + name_bytes + size_bytes + 16
    many = len(members) > zipfile.ZIP_FILECOUNT_LIMIT
    wide = many or before > zipfile.ZIP64_LIMIT or directory > zipfile.ZIP64_LIMIT
    return before + directory + 22 + (76 if wide else 0)
