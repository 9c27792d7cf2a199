"""What the files of a checkpoint are, and how much of them has come: noted by the worker that fetches it, beside its
checkpoints, and read by `serinette up` and `serinette doctor`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from serinette.spec import RecordModel


class Fetched(NamedTuple):
    """How much has come. `size_bytes`: of all; 0 where nothing is fetched, and of a worker that does not report it."""

    done_bytes: int
    size_bytes: int

    @property
    def whole(self) -> bool:
        """Whether nothing is to come."""
        return self.done_bytes == self.size_bytes

    def __str__(self) -> str:
        of = f" of {self.size_bytes / 1e6:,.0f}" if self.size_bytes else ""
        return f"{self.done_bytes / 1e6:,.0f}{of} MB have come"


class CheckpointFiles(RecordModel):
    """The files of one checkpoint."""

    model: str  # as the operator names it
    directory: Path  # where they lie once they are whole
    incoming: Path  # where they lie until then
    sizes_bytes: dict[str, int]  # by their path below `directory`

    def fetched(self) -> Fetched:
        """How much of it is on the disk."""
        whole = sum(size for name, size in self.sizes_bytes.items() if (self.directory / name).exists())
        size_bytes = sum(self.sizes_bytes.values())
        return Fetched(min(whole + _on_disk(self.incoming), size_bytes), size_bytes)


def note_files(checkpoints: Path, files: CheckpointFiles) -> None:
    """Note them below the directory of a worker's checkpoints, in place of what was noted of the same model."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    note = _note(checkpoints, files.model)
    draft = note.with_suffix(f".{os.getpid()}")
    draft.write_text(files.model_dump_json())
    draft.replace(note)


def noted_files(checkpoints: Path, models: Iterable[str]) -> list[CheckpointFiles]:
    """What is noted of these models, as far as it is."""
    found = []
    for model in models:
        with suppress(OSError, ValueError):
            found.append(CheckpointFiles.model_validate_json(_note(checkpoints, model).read_bytes()))
    return found


def fetched_of(checkpoints: Path, models: Iterable[str]) -> Fetched:
    """How much of these models has come, those together of which it is noted."""
    counts = [files.fetched() for files in noted_files(checkpoints, models)]
    return Fetched(sum(count.done_bytes for count in counts), sum(count.size_bytes for count in counts))


def _note(checkpoints: Path, model: str) -> Path:
    return checkpoints / f".{hashlib.sha256(model.encode()).hexdigest()[:16]}.files"


def _on_disk(incoming: Path) -> int:
    """Bytes below a directory; what is still to come of a file is no more than a hole in it."""
    total = 0
    for file in incoming.rglob("*"):
        with suppress(OSError):  # renamed meanwhile
            total += file.stat().st_blocks * 512 if file.is_file() else 0
    return total
