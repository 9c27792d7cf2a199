"""`serinette run`: a container submitted, its log followed, what it left fetched. It ends with the container's code."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.markup import escape

from serinette.cli import options as option
from serinette.cli.following import leaving
from serinette.cli.options import AsJson, CancelOnInterrupt, connect, pair_of, within
from serinette.cli.terminal import EXIT_INTERRUPTED, EXIT_NO_CODE, JobView, errors, output, print_submitted, program
from serinette.client import Client
from serinette.container import MAX_INPUTS, ContainerSpec, is_file_name
from serinette.errors import RequestError, SerinetteError
from serinette.job import Job, JobOptions, JobStatus, Stage

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
        help="A file or directory, uploaded to /inputs/NAME; or an upload's id, JOB_ID/0, songs/JOB_ID/. Repeat it.",
        rich_help_panel=_FILES,
    ),
]
OutputDirectory = Annotated[
    Path | None,
    typer.Option("--output", "-o", file_okay=False, help="Where /outputs goes when it ends.", rich_help_panel=_FILES),
]
# Of ContainerSpec and JobOptions.
_PANELS: option.Panels = {_SIZE: "gpus cpu memory_mib disk_mib retries pool writable_root", **option.JOB}
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Print the job's id, and do not wait.")]

# What the gateway has already: an upload, a song, all of a job or an upload.
_KEPT = (
    ("upload", re.compile(r"upload-[0-9a-f]{32}")),
    ("artifact", re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/[0-7]")),
    ("prefix", re.compile(r"(?:songs|uploads)/[0-9a-z-]+/")),
)


@dataclass(frozen=True, slots=True)
class InputFile:
    """One of a container's inputs: a local file, or something that the gateway has already."""

    path: str  # below /inputs
    source: Mapping[str, str]  # artifact, upload or prefix; of a local file nothing yet
    local: Path | None = None

    def given(self, upload_id: str | None = None) -> dict[str, str]:
        """As the API takes it."""
        return {"path": self.path, **(self.source or {"upload": upload_id or f"upload-{'0' * 32}"})}


def input_files(texts: Sequence[str]) -> tuple[InputFile, ...]:
    """What `--input` names, file by file.

    Raises:
        typer.BadParameter: there is no such file, one may not be called so, or there are too many.
    """
    found = tuple(each for text in texts for each in _files_of(text))
    for each in found:
        if not is_file_name(each.path):
            raise _wrong(f"{each.path!r} may not be called so: letters, digits, . _ and -, not beginning with a dot")
    if len(found) > MAX_INPUTS:
        raise _wrong(f"{len(found)} files are too many, {MAX_INPUTS} may be uploaded: pack them into an archive")
    return found


def _files_of(text: str) -> Iterator[InputFile]:
    source, colon, name = text.rpartition(":")
    if not colon or Path(text).exists():
        source, name = text, ""
    for kind, pattern in _KEPT:
        if pattern.fullmatch(source):
            yield InputFile(name or source.strip("/").rpartition("/")[2], {kind: source})
            return
    path, name = Path(source), name.rstrip("/") or Path(source).resolve().name
    if path.is_file():
        yield InputFile(name, {}, path)
    elif path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        if not files:
            raise _wrong(f"the directory {path} is empty")
        yield from (InputFile(f"{name}/{each.relative_to(path).as_posix()}", {}, each) for each in files)
    else:
        raise _wrong(f"there is no file or directory {path}")


def spec_of(
    params: Mapping[str, Any], inputs: Sequence[Mapping[str, str]], command: Sequence[str]
) -> tuple[ContainerSpec, JobOptions]:
    """What was asked for, in the options that are called as the fields; without those left out, so that the server's
    own defaults hold.

    Raises:
        typer.BadParameter: something is out of bounds.
    """
    given = {name: value for name, value in params.items() if value not in (None, False, (), [])}
    for name, given_as in (("env", "--env"), ("secrets", "--secret"), ("labels", "--label")):
        given[name] = dict(pair_of(text, given_as) for text in params[name] or ())
    given |= {"inputs": inputs, "args" if params["as_args"] else "command": command}
    return option.built(ContainerSpec, given)


def _wrong(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--input")


_POLL_S = 0.5
# From the first of these on there is a log.
_LOGGED = {Stage.COMPUTING, Stage.UPLOADING}


@option.with_fields(_PANELS, ContainerSpec, JobOptions)
@within(connect)
def run(
    client: Client,
    context: typer.Context,
    image: Image,
    command: Command = None,
    inputs: Inputs = None,
    output_directory: OutputDirectory = None,
    env: Env = None,
    secrets: Secret = None,
    as_args: AsArgs = False,
    labels: option.Label = None,
    idempotency_key: option.IdempotencyKey = None,
    detach: Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    as_json: AsJson = False,
    **_: Any,  # noqa: ANN401  # fields of the spec, read from the context
) -> None:
    """Run an image and a command on the cluster, follow its log, and end with its exit code.

    Exit status 125: it ended without a code of its own (no image, no node, its time was over); 130: it was canceled.
    """
    files = input_files(inputs or ())
    words = tuple(command or ())
    spec_of(context.params, [each.given() for each in files], words)  # what is wrong is said before anything is sent
    job = _submitted(client, context.params, files, words)
    if detach:
        print_submitted(job, as_json=as_json)
    else:
        finish(client, job, output_directory, as_json=as_json, cancel_on_interrupt=cancel_on_interrupt)


def finish(
    client: Client, job: Job, directory: Path | None, *, as_json: bool = False, cancel_on_interrupt: bool = False
) -> None:
    """Follow a container to its end, write what it left, and end with its exit code."""
    with leaving(client, job, cancel_on_interrupt=cancel_on_interrupt):
        job = _follow(client, job, sys.stderr if as_json else sys.stdout)
    written = client.containers.download(job, directory) if directory else ()
    if as_json:
        output.print_json(job.model_dump_json())
    for path in written:
        errors.print(f"  wrote {path}", markup=False, soft_wrap=True, style="dim")
    _print_end(job, fetched=directory is not None)
    if code := exit_code(job):
        raise typer.Exit(code)


def exit_code(job: Job) -> int:
    """Of a container that has ended: its own; without one 0, 125, or 130 if it was canceled."""
    if job.status is JobStatus.SUCCEEDED:
        return 0
    if job.status is JobStatus.CANCELED:
        return EXIT_INTERRUPTED
    return (job.run.exit_code if job.run else None) or EXIT_NO_CODE


def _submitted(client: Client, params: Mapping[str, Any], files: Sequence[InputFile], words: Sequence[str]) -> Job:
    uploaded: list[str] = []
    try:
        spec, options = spec_of(params, _upload_inputs(client, files, uploaded), words)
        return client.containers.submit(spec, options=options, idempotency_key=params["idempotency_key"])
    except RequestError:
        for upload_id in uploaded:  # no job will use them
            client.erase_upload(upload_id)
        raise


def _upload_inputs(client: Client, files: Sequence[InputFile], uploaded: list[str]) -> list[dict[str, str]]:
    """The inputs, local ones uploaded; `uploaded` gets their ids as they come."""
    given = []
    for each in files:
        if each.local:
            uploaded.append(_upload(client, each.local))
        given.append(each.given(uploaded[-1] if each.local else None))
    return given


def _upload(client: Client, path: Path) -> str:
    try:
        return client.containers.upload(path).id
    except OSError as error:
        raise SerinetteError(f"cannot read {path}: {error.strerror}") from error


def _follow(client: Client, job: Job, stream: IO[str]) -> Job:
    # Without a moving line: that would stand between the lines of the log.
    with JobView(job.container.image if job.container else job.id, moving=False) as view:
        for seen in client.watch(job.id, poll_s=_POLL_S):
            view.show(seen)
            if seen.status.ended or (seen.progress and seen.progress.stage in _LOGGED):
                break
        for line in client.containers.follow(job.id):
            stream.write(f"{line}\n")  # as it is: colours are the container's own
            stream.flush()
        ended = client.get(job.id)
        view.show(ended)
    return ended


def _print_end(job: Job, *, fetched: bool) -> None:
    for warning in job.run.warnings if job.run else ():
        errors.print(f"  [yellow]{escape(warning)}[/]", soft_wrap=True)
    if job.error:
        errors.print(f"[bold red]Error:[/] job {job.id} {job.status}: {escape(job.error.message)}", soft_wrap=True)
    if (left := len(job.run.outputs) if job.run else 0) and not fetched:
        files = "1 file is" if left == 1 else f"{left} files are"
        errors.print(f"  {files} kept: {program()} watch {job.id} --output DIR", style="dim", soft_wrap=True)
