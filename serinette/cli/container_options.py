"""What `serinette run` may be told, read into the spec's own fields (ContainerSpec, JobOptions). Sends nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from serinette.cli.options import label_of
from serinette.container import MAX_INPUTS, ContainerSpec, is_file_name
from serinette.job import JobOptions
from serinette.spec import invalid_spec

_SIZE, _FILES = "What it may take", "What goes in and out"

Image = Annotated[str, typer.Argument(metavar="IMAGE", help="In full; the operator must allow it.", show_default=False)]
Command = Annotated[
    list[str] | None, typer.Argument(metavar="-- CMD", help="In place of the image's own.", show_default=False)
]
AsArgs = Annotated[bool, typer.Option("--args", help="CMD are arguments of the image's own entrypoint.")]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="May be repeated.")]
Secret = Annotated[
    list[str] | None,
    typer.Option("--secret", metavar="NAME=PUBLISHED", help="A secret that the operator published, as variable NAME."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="LOCAL[:NAME]",
        help="A file or directory, brought to /inputs/NAME; or an upload's id, JOB_ID/0, songs/JOB_ID/. Repeat it.",
        rich_help_panel=_FILES,
    ),
]
OutputDirectory = Annotated[
    Path | None,
    typer.Option("--output", "-o", file_okay=False, help="Where /outputs goes when it ends.", rich_help_panel=_FILES),
]
Gpus = Annotated[int | None, typer.Option("--gpus", help="None by default.", rich_help_panel=_SIZE)]
Cpu = Annotated[float | None, typer.Option("--cpu", help="Cores.", rich_help_panel=_SIZE)]
Memory = Annotated[str | None, typer.Option("--memory", "-m", help="MiB, or as in 16g.", rich_help_panel=_SIZE)]
Disk = Annotated[
    str | None, typer.Option("--disk", help="Inputs, outputs and /tmp: MiB, or as in 16g.", rich_help_panel=_SIZE)
]
Retries = Annotated[int | None, typer.Option("--retries", help="Further attempts, 0 to 9.", rich_help_panel=_SIZE)]
PoolName = Annotated[
    str | None, typer.Option("--pool", help="Machines that the operator named.", rich_help_panel=_SIZE)
]
WritableRoot = Annotated[
    bool, typer.Option("--writable-root", help="Write anywhere; only for images allowed to.", rich_help_panel=_SIZE)
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Print the job's id, and do not wait.")]

_OF_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([mg]?)i?b?", re.IGNORECASE)
# What the gateway has already: an upload, a song, all of a job or an upload.
_KEPT = (
    ("upload", re.compile(r"upload-[0-9a-f]{32}")),
    ("artifact", re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/[0-7]")),
    ("prefix", re.compile(r"(?:songs|uploads)/[0-9a-z-]+/")),
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One of a container's inputs: a local file, or something that the gateway has already."""

    path: str  # below /inputs
    source: Mapping[str, str]  # artifact, upload or prefix; of a local file nothing yet
    local: Path | None = None

    def given(self, upload_id: str | None = None) -> dict[str, str]:
        """As the API takes it."""
        return {"path": self.path, **(self.source or {"upload": upload_id or f"upload-{'0' * 32}"})}


def wanted(texts: Sequence[str]) -> tuple[Wanted, ...]:
    """What `--input` names, file by file.

    Raises:
        typer.BadParameter: there is no such file, one may not be called so, or there are too many.
    """
    found = tuple(each for text in texts for each in _wanted(text))
    for each in found:
        if not is_file_name(each.path):
            raise _wrong(f"{each.path!r} may not be called so: letters, digits, . _ and -, not beginning with a dot")
    if len(found) > MAX_INPUTS:
        raise _wrong(f"{len(found)} files are too many, {MAX_INPUTS} may be brought: pack them into an archive")
    return found


def _wanted(text: str) -> Iterator[Wanted]:
    source, colon, name = text.rpartition(":")
    if not colon or Path(text).exists():
        source, name = text, ""
    for kind, pattern in _KEPT:
        if pattern.fullmatch(source):
            yield Wanted(name or source.strip("/").rpartition("/")[2], {kind: source})
            return
    path, name = Path(source), name.rstrip("/") or Path(source).resolve().name
    if path.is_file():
        yield Wanted(name, {}, path)
    elif path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        if not files:
            raise _wrong(f"the directory {path} is empty")
        yield from (Wanted(f"{name}/{each.relative_to(path).as_posix()}", {}, each) for each in files)
    else:
        raise _wrong(f"there is no file or directory {path}")


def ordered(
    params: Mapping[str, Any], inputs: Sequence[Mapping[str, str]], command: Sequence[str]
) -> tuple[ContainerSpec, JobOptions]:
    """What was asked for, in the options that are called as the fields; without those left out, so that the server's
    own defaults hold.

    Raises:
        typer.BadParameter: something is out of bounds.
    """
    given = {name: value for name, value in params.items() if value not in (None, False, (), [])}
    given |= {name: pairs_of(params[name], f"--{option}") for name, option in (("env", "env"), ("secrets", "secret"))}
    given |= {name: mib_of(params[name], name) for name in ("memory_mib", "disk_mib") if params[name]}
    given |= {"labels": dict(label_of(text) for text in params["labels"] or ()), "inputs": inputs}
    given["args" if params["as_args"] else "command"] = command
    try:
        return (
            ContainerSpec(**{name: given[name] for name in ContainerSpec.model_fields.keys() & given.keys()}),
            JobOptions(**{name: given[name] for name in JobOptions.model_fields.keys() & given.keys()}),
        )
    except ValidationError as error:
        raise typer.BadParameter(invalid_spec(error).message) from error


def pairs_of(texts: Sequence[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE, any number of times."""
    pairs: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
        pairs[name] = value
    return pairs


def mib_of(text: str, option: str) -> int:
    """A size in MiB: 512, 512m, 16g."""
    match = _OF_SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is no size: say 512 or 512m for MiB, 16g for GiB", param_hint=f"--{option.partition('_')[0]}"
        )
    return round(float(match[1]) * (1024 if match[2].lower() == "g" else 1))


def _wrong(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--input")
