"""The songs of a batch as a file of one spec a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serinette.spec import GenerationSpec

Spec = GenerationSpec | Mapping[str, Any] | str
Specs = Iterable[Spec]


@contextmanager
def jsonl(specs: Specs | PathLike[str]) -> Iterator[Path]:
    """A file of one spec a line: the one that is named, or one made of them, so that it can be sent again."""
    if isinstance(specs, PathLike):
        yield Path(specs)
        return
    with TemporaryDirectory(prefix="serinette-batch-") as directory:
        path = Path(directory) / "specs.jsonl"
        with path.open("w") as file:
            file.writelines(f"{json.dumps(line_of(spec), ensure_ascii=False)}\n" for spec in specs)
        yield path


def line_of(spec: Spec) -> dict[str, Any]:
    """A line as it is sent: a spec, its fields (and `custom_id`), or its prompt alone."""
    if isinstance(spec, GenerationSpec):
        return spec.model_dump(mode="json", exclude_unset=True)
    return {"prompt": spec} if isinstance(spec, str) else dict(spec)
