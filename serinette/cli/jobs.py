"""`serinette submit`, `watch`, `jobs` and `cancel`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column

from serinette.cli import containers, following
from serinette.cli import options as option
from serinette.cli.options import AsJson, CancelOnInterrupt, JobId, Output, connect, format_of, pair_of, within
from serinette.cli.terminal import (
    STATUS_STYLES,
    age,
    errors,
    output,
    print_submitted,
    program,
    seconds,
    show_table,
    state,
)
from serinette.client import Client
from serinette.errors import SerinetteError
from serinette.job import Job, JobOptions, JobStatus
from serinette.spec import GenerationSpec, Task

_AUDIO = ("source_audio", "reference_audio")


@option.with_fields(option.SONG, GenerationSpec, JobOptions)
@within(connect)
def submit(
    client: Client,
    context: typer.Context,
    prompt: option.Prompt = None,
    output_path: Output = None,
    labels: option.Label = None,
    idempotency_key: option.IdempotencyKey = None,
    wait: Annotated[bool, typer.Option(help="Wait for the song and write it.")] = True,
    cancel_on_interrupt: CancelOnInterrupt = False,
    as_json: AsJson = False,
    **_: Any,  # noqa: ANN401  # fields of the spec, read from the context
) -> None:
    """Queue a song, watch its progress and write it to a file. Of tasks write, format, describe the text is printed."""
    if prompt is None and context.params["task"] != Task.DESCRIBE:
        raise typer.BadParameter("say what to generate", param_hint="PROMPT")
    params = {**context.params, "prompt": _read_standard_input().strip() if prompt == "-" else prompt}
    if wait:
        option.check_output(output_path)
    _check(params, output_path)
    spec, options = _spec_of({**params, **_uploaded(client, params)}, output_path)
    job = client.submit(spec, options, idempotency_key=idempotency_key)
    if wait:
        following.finish(client, job, output_path, as_json=as_json, cancel_on_interrupt=cancel_on_interrupt)
    else:
        print_submitted(job, as_json=as_json)


def _check(params: Mapping[str, Any], path: Path | None) -> None:
    """Say what is wrong before any file is uploaded, which takes the place of an id."""
    _spec_of({**params, **{name: "checked-later" for name in _AUDIO if params[name]}}, path)


def _spec_of(params: Mapping[str, Any], path: Path | None) -> tuple[GenerationSpec, JobOptions]:
    """What was asked for, in the options that are called as the fields; without those left out, so that the server's
    own defaults hold.
    """
    given = {name: value for name, value in params.items() if value not in (None, "", ()) and value is not False}
    given |= {
        "lyrics": _text(params["lyrics"] or ""),
        "format": params["format"] or format_of(path),
        "labels": dict(map(pair_of, params["labels"] or ())),
    }
    if params["source_audio"] and not params["task"]:
        given["task"] = Task.COVER
    return option.built(GenerationSpec, given)


def _uploaded(client: Client, params: Mapping[str, Any]) -> dict[str, str]:
    """The ids of the audio to work on; files are uploaded first."""
    return {name: _audio_id(client, params[name]) for name in _AUDIO if params[name]}


def _audio_id(client: Client, value: str) -> str:
    path = Path(value)
    if path.is_file():
        return client.upload(path).id
    if path.suffix or value.startswith((".", "/", "~")):
        raise SerinetteError(f"there is no file {value}")
    return value


def _read_standard_input() -> str:
    if sys.stdin is None:  # closed, as by <&-
        raise typer.BadParameter("standard input is closed", param_hint="PROMPT")
    return sys.stdin.read()


def _text(value: str) -> str:
    """A text, or for @FILE what the file holds."""
    if not value.startswith("@"):
        if "\n" not in value and value.endswith((".txt", ".lrc")) and Path(value).is_file():
            raise typer.BadParameter(f"{value} is a file: to use its text, write @{value}", param_hint="--lyrics")
        return value
    try:
        return Path(value[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {value[1:]}: {error}", param_hint="--lyrics") from error


@within(connect)
def watch(
    client: Client,
    job_id: JobId,
    output_path: Output = None,
    cancel_on_interrupt: CancelOnInterrupt = False,
    as_json: AsJson = False,
) -> None:
    """Watch a job that was submitted before, and write its song to a file; a container's outputs to a directory."""
    job = client.get(job_id)
    if not job.container:
        option.check_output(output_path)
    to_the_end = containers.finish if job.container else following.finish
    to_the_end(client, job, output_path, as_json=as_json, cancel_on_interrupt=cancel_on_interrupt)


@within(connect)
def jobs(
    client: Client,
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    label: Annotated[str | None, typer.Option(help="Only jobs with this NAME=VALUE.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    page = client.list(status=status, label=pair_of(label) if label else None, limit=limit)
    if as_json:
        output.print_json(data=[job.model_dump(mode="json") for job in page.jobs])
        return
    show_jobs(page.jobs)
    if page.next_cursor:
        errors.print(f"There are more: {program()} jobs -n {min(100, 2 * limit)}", style="dim")


@within(connect)
def show(
    client: Client,
    job_id: JobId,
    as_json: AsJson = False,
) -> None:
    """Show one job: where it is, what it waits for, how its attempts went, and its songs."""
    job = client.get(job_id)
    if as_json:
        output.print_json(job.model_dump_json())
        return
    rows = [(name, escape(" ".join(value.split()))) for name, value in _facts(job) if value]
    show_table((Column("FIELD", no_wrap=True), Column("VALUE", overflow="fold")), rows)


def _facts(job: Job) -> Iterator[tuple[str, str]]:
    yield "job", job.id
    yield "status", state(job) + (f", {seconds(job.eta_s)} left" if job.eta_s is not None else "")
    yield "waits for", job.waiting_for or ""
    yield "prompt", job.container.image if job.container else job.spec.prompt
    yield "pool, lane", f"{job.pool}, {job.lane}"
    yield "created", f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC"
    yield "ended", f"{job.ended_at:%Y-%m-%d %H:%M:%S} UTC" if job.ended_at else ""
    yield "labels", ", ".join(f"{name}={value}" for name, value in job.labels.items())
    for attempt in job.attempts:
        yield (
            f"attempt {attempt.number}",
            f"on {attempt.worker}" + (f": {attempt.error.message}" if attempt.error else ""),
        )
    yield "error", f"{job.error.code}: {job.error.message}" if job.error else ""
    for song in job.result.artifacts if job.result else ():
        yield (
            f"song {song.index}",
            f"{song.duration_s:.1f} s of {song.format}, {song.size_bytes:,} bytes, seed {song.seed}",
        )
        if song.plan:
            yield f"plan {song.index}", following.in_words(song.plan)
    for text in job.result.texts if job.result else ():
        yield "text", following.in_words(text)
    for warning in job.result.warnings if job.result else ():
        yield "warning", warning


@within(connect)
def cancel(
    client: Client,
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB_ID...", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Cancel jobs: a queued one at once, a running one within a step."""
    canceled = [client.cancel(job_id) for job_id in job_ids]
    if as_json:
        output.print_json(data=[job.model_dump(mode="json") for job in canceled])
        return
    for job in canceled:
        words = "canceled" if job.status.ended else "cancel requested: it stops within a step"
        output.print(words if len(canceled) == 1 else f"{job.id}: {words}")


def show_jobs(shown: Sequence[Job]) -> None:
    """Print a line for each job."""
    columns = (
        Column("JOB", width=36, overflow="fold"),
        Column("STATUS", width=9),
        Column("AGE", width=6, justify="right"),
        Column("PROMPT", no_wrap=True, overflow="ellipsis", ratio=1),
    )
    show_table(columns, [_row(job) for job in shown])


def _row(job: Job) -> tuple[str, str, str, str]:
    status = f"[{STATUS_STYLES[job.status]}]{job.status}[/]"
    title = job.container.image if job.container else job.spec.prompt
    return job.id, status, age(job.created_at), escape(" ".join(title.split()))
