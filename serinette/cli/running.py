"""`serinette run`: a container submitted, its log followed, what it left fetched. It ends with the container's code."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import typer
from rich.markup import escape

from serinette.cli import container_options as container
from serinette.cli import song_options as song
from serinette.cli.container_options import Wanted, ordered, wanted
from serinette.cli.exits import EXIT_INTERRUPTED, EXIT_NO_CODE
from serinette.cli.following import leaving
from serinette.cli.options import ApiKey, AsJson, CancelOnInterrupt, Server, connect
from serinette.cli.terminal import JobView, errors, output, program, tell_submitted
from serinette.client import DEFAULT_URL, Client
from serinette.client.container_calls import LogReader
from serinette.errors import RequestError, SerinetteError
from serinette.job import Job, JobStatus
from serinette.names import Lane

_POLL_S = 0.5


def run(
    context: typer.Context,
    image: container.Image,
    command: container.Command = None,
    inputs: container.Inputs = None,
    output_directory: container.OutputDirectory = None,
    env: container.Env = None,
    secrets: container.Secret = None,
    as_args: container.AsArgs = False,
    gpus: container.Gpus = None,
    cpu: container.Cpu = None,
    memory_mib: container.Memory = None,
    disk_mib: container.Disk = None,
    timeout_s: song.Timeout = None,
    retries: container.Retries = None,
    pool: container.PoolName = None,
    writable_root: container.WritableRoot = False,
    lane: song.LaneName = Lane.NORMAL,
    labels: song.Label = None,
    start_deadline_s: song.StartDeadline = None,
    webhook: song.Webhook = None,
    idempotency_key: song.IdempotencyKey = None,
    detach: container.Detach = False,
    cancel_on_interrupt: CancelOnInterrupt = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Run an image and a command on the cluster, follow its log, and end with its exit code.

    Exit status 125: it ended without a code of its own (no image, no node, its time was over); 130: it was canceled.
    """
    files = wanted(inputs or ())
    words = tuple(command or ())
    ordered(context.params, [each.given() for each in files], words)  # what is wrong is told before anything is sent
    with connect(server, api_key) as client:
        job = _submitted(client, context.params, files, words)
        if detach:
            tell_submitted(job, as_json=as_json)
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
    _tell_end(job, fetched=directory is not None)
    if code := exit_code(job):
        raise typer.Exit(code)


def exit_code(job: Job) -> int:
    """Of a container that has ended: its own; without one 0, 125, or 130 if it was canceled."""
    if job.status is JobStatus.SUCCEEDED:
        return 0
    if job.status is JobStatus.CANCELED:
        return EXIT_INTERRUPTED
    return (job.run.exit_code if job.run else None) or EXIT_NO_CODE


def _submitted(client: Client, params: Mapping[str, Any], files: Sequence[Wanted], words: Sequence[str]) -> Job:
    brought: list[str] = []
    try:
        spec, options = ordered(params, _brought(client, files, brought), words)
        return client.containers.submit(spec, options=options, idempotency_key=params["idempotency_key"])
    except RequestError:
        for upload_id in brought:  # nobody will ever use them
            client.erase_upload(upload_id)
        raise


def _brought(client: Client, files: Sequence[Wanted], brought: list[str]) -> list[dict[str, str]]:
    """The inputs, local ones uploaded; `brought` gets their ids as they come."""
    given = []
    for each in files:
        if each.local:
            brought.append(_uploaded(client, each.local))
        given.append(each.given(brought[-1] if each.local else None))
    return given


def _uploaded(client: Client, path: Path) -> str:
    try:
        return client.containers.upload(path).id
    except OSError as error:
        raise SerinetteError(f"cannot read {path}: {error.strerror}") from error


def _follow(client: Client, job: Job, stream: IO[str]) -> Job:
    reader = LogReader(job.id)
    # Without a moving line: that would stand between the lines of the log.
    with JobView(job.container.image if job.container else job.id, moving=False) as view:
        for seen in client.watch(job.id, poll_s=_POLL_S):
            if seen.status is not JobStatus.QUEUED:
                lines = client.perform(reader.call())
                _print(lines, stream)
            if seen.status.ended:
                _print(reader.rest(), stream)
            view.show(seen)
    return seen


def _print(lines: Sequence[str], stream: IO[str]) -> None:
    # As they are: colours are the container's own.
    stream.writelines(f"{line}\n" for line in lines)
    stream.flush()


def _tell_end(job: Job, *, fetched: bool) -> None:
    for warning in job.run.warnings if job.run else ():
        errors.print(f"  [yellow]{escape(warning)}[/]", soft_wrap=True)
    if job.error:
        errors.print(f"[bold red]Error:[/] job {job.id} {job.status}: {escape(job.error.message)}", soft_wrap=True)
    if (left := len(job.run.outputs) if job.run else 0) and not fetched:
        files = "1 file is" if left == 1 else f"{left} files are"
        errors.print(f"  {files} kept: {program()} watch {job.id} --output DIR", style="dim", soft_wrap=True)
