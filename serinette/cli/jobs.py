"""`serinette watch`, `jobs` and `cancel`: jobs that were ordered before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column

from serinette.cli import running
from serinette.cli.following import finish
from serinette.cli.options import ApiKey, AsJson, CancelOnInterrupt, JobId, Output, Server, connect, label_of
from serinette.cli.terminal import STATUS_STYLES, age, errors, output, program, show_table
from serinette.client import DEFAULT_URL
from serinette.job import Job, JobStatus


def watch(
    job_id: JobId,
    output_path: Output = None,
    cancel_on_interrupt: CancelOnInterrupt = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Watch a job that was ordered before, and write its song to a file; of a container its outputs to a directory."""
    with connect(server, api_key) as client:
        job = client.get(job_id)
        to_the_end = running.finish if job.container else finish
        to_the_end(client, job, output_path, as_json=as_json, cancel_on_interrupt=cancel_on_interrupt)


def jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    label: Annotated[str | None, typer.Option(help="Only jobs with this NAME=VALUE.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many.")] = 20,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List jobs, newest first."""
    with connect(server, api_key) as client:
        page = client.list(status=status, label=label_of(label) if label else None, limit=limit)
    if as_json:
        output.print_json(json.dumps([job.model_dump(mode="json") for job in page.jobs]))
        return
    show_jobs(page.jobs)
    if page.next_cursor:
        errors.print(f"There are more: {program()} jobs -n {min(100, 2 * limit)}", style="dim")


def cancel(
    job_ids: Annotated[list[str], typer.Argument(metavar="JOB_ID...", show_default=False)],
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Cancel jobs: a queued one at once, a running one within a step."""
    with connect(server, api_key) as client:
        canceled = [client.cancel(job_id) for job_id in job_ids]
    if as_json:
        output.print_json(json.dumps([job.model_dump(mode="json") for job in canceled]))
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
