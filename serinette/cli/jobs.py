"""`serinette submit`, `watch`, `jobs`, `cancel` and `queue`: clients of any gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Column

from serinette.cli.terminal import STATUS_STYLES, JobView, age, errors, output, program, seconds, show_table
from serinette.client import DEFAULT_URL, Client
from serinette.errors import SingError
from serinette.job import Job, JobOptions, JobStatus
from serinette.names import Lane
from serinette.spec import AudioFormat, GenerationSpec, invalid_spec

Server = Annotated[
    str, typer.Option(envvar="SERINETTE_URL", help=f"URL of the gateway; {DEFAULT_URL}.", show_default=False)
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="SERINETTE_API_KEY",
        help="Key of a gateway that asks for one; better in the environment, where others do not see it.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write; its ending tells the format. Else JOB_ID.FORMAT.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", show_default=False)]


def submit(
    prompt: Annotated[str, typer.Argument(help="Style, mood, instruments.", show_default=False)],
    duration_s: Annotated[float, typer.Option("--duration", "-d", help="Seconds, 1 to 600.")] = 60.0,
    output_path: Output = None,
    lyrics: Annotated[str, typer.Option("--lyrics", "-l", help="Words to sing, or @FILE. None: instrumental.")] = "",
    language: Annotated[str, typer.Option(help="BCP-47 language of the lyrics.")] = "en",
    bpm: Annotated[int | None, typer.Option(help="Beats per minute, 30 to 300.")] = None,
    key_scale: Annotated[str | None, typer.Option("--key", help="For example 'C major'.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed sings the same song.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 200.")] = None,
    variations: Annotated[int, typer.Option("--variations", "-n", help="Songs, 1 to 8.")] = 1,
    song_format: Annotated[AudioFormat | None, typer.Option("--format", help="Else as --output ends, or mp3.")] = None,
    lane: Annotated[Lane, typer.Option(help="Priority.")] = Lane.NORMAL,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, to list jobs by; may be repeated.")] = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="A repeated call makes no second song.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the song and write it.")] = True,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Order a song, watch it being sung and write it to a file."""
    fields: dict[str, Any] = {
        "prompt": prompt,
        "duration_s": duration_s,
        "lyrics": _text(lyrics),
        "vocal_language": language,
        "bpm": bpm,
        "key_scale": key_scale,
        "seed": seed,
        "steps": steps,
        "variations": variations,
        "format": song_format or format_of(output_path),
    }
    spec, options = _order(fields, lane, label or [])
    with Client(server, api_key=api_key) as client:
        job = client.submit(spec, options, idempotency_key=key)
        if wait:
            _finish(client, job, output_path, as_json=as_json)
        else:
            _tell_submitted(job, as_json=as_json)


def _tell_submitted(job: Job, *, as_json: bool) -> None:
    if as_json:
        output.print_json(job.model_dump_json())
    else:
        output.print(job.id)


def watch(
    job_id: JobId,
    output_path: Output = None,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Watch a job that was ordered before, and write its song to a file."""
    with Client(server, api_key=api_key) as client:
        _finish(client, client.get(job_id), output_path, as_json=as_json)


def jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only jobs in this state.")] = None,
    label: Annotated[str | None, typer.Option(help="Only jobs with this NAME=VALUE.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many.")] = 20,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List jobs, newest first."""
    with Client(server, api_key=api_key) as client:
        page = client.list(status=status, label=_label(label) if label else None, limit=limit)
    if as_json:
        output.print_json(json.dumps([job.model_dump(mode="json") for job in page.jobs]))
        return
    show_jobs(page.jobs)
    if page.next_cursor:
        errors.print(f"There are more: {program()} jobs -n {min(100, 2 * limit)}", style="dim")


def cancel(job_id: JobId, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Cancel a job: a queued one at once, a running one within a step."""
    with Client(server, api_key=api_key) as client:
        job = client.cancel(job_id)
    output.print("canceled" if job.status.ended else "cancel requested: it stops within a step")


def queue(as_json: AsJson = False, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show what waits and who sings."""
    with Client(server, api_key=api_key) as client:
        told = client.queue()
    if as_json:
        output.print_json(json.dumps(told))
        return
    for pool in told["pools"]:
        workers = ", ".join(_worker(worker) for worker in pool["workers"]) or "none"
        errors.print(f"Pool [bold]{escape(pool['name'])}[/]: {pool['running']} running; workers: {workers}")
    lanes = [
        (escape(pool["name"]), lane["lane"], str(lane["waiting"]), _or_unknown(lane["eta_s"]))
        for pool in told["pools"]
        for lane in pool["lanes"]
    ]
    columns = (
        Column("POOL", no_wrap=True),
        Column("LANE"),
        Column("WAITING", justify="right"),
        Column("A SONG NOW TAKES", justify="right"),
    )
    show_table(columns, lanes)


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
    return job.id, status, age(job.created_at), escape(" ".join(job.spec.prompt.split()))


def _worker(worker: dict[str, Any]) -> str:
    """One worker in words; the gateway's own may be newer than we."""
    model = worker.get("model") or "no model yet"
    words = f"{worker['name']} {worker['stage']}, {worker['busy_slots']} of {worker['slots']} slots busy, {model}"
    return escape(words + (f" ({worker['message']})" if worker.get("message") else ""))


def _or_unknown(value_s: float | None) -> str:
    return "unknown" if value_s is None else seconds(value_s)


def _order(fields: dict[str, Any], lane: Lane, labels: list[str]) -> tuple[GenerationSpec, JobOptions]:
    """What was asked for, without the defaults, so that the server's own hold."""
    given = {name: value for name, value in fields.items() if value not in (None, "")}
    try:
        return GenerationSpec(**given), JobOptions(lane=lane, labels=dict(_label(text) for text in labels))
    except ValidationError as error:
        raise typer.BadParameter(invalid_spec(error).message) from error


def _text(value: str) -> str:
    """A text, or for @FILE what the file holds."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {value[1:]}: {error}", param_hint="--lyrics") from error


def _label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--label")
    return name, value


def format_of(path: Path | None) -> AudioFormat:
    """The format that the ending of a path tells; mp3 when there is none."""
    if path is None:
        return AudioFormat.MP3
    if not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"the directory {path.absolute().parent} does not exist", param_hint="--output")
    ending = path.suffix.lower().removeprefix(".") or AudioFormat.MP3
    try:
        return AudioFormat(ending)
    except ValueError:
        allowed = ", ".join(AudioFormat)
        raise typer.BadParameter(
            f"{path} ends in no format that can be written ({allowed}): add --format", param_hint="--output"
        ) from None


def follow(client: Client, job: Job, tend: Callable[[], None] = lambda: None) -> Job:
    """Show a job until it has ended; `tend` is called a few times a second meanwhile."""
    with JobView(" ".join(job.spec.prompt.split()) or job.spec.task) as view:
        for seen in client.watch(job.id):
            view.show(seen)
            tend()
    return seen


def _finish(client: Client, job: Job, path: Path | None, *, as_json: bool) -> None:
    """Wait for a job and write its songs."""
    try:
        job = follow(client, job)
    except KeyboardInterrupt:
        errors.print(f"The job goes on. To follow it: {program()} watch {job.id}", soft_wrap=True)
        errors.print(f"             To stop it:   {program()} cancel {job.id}", soft_wrap=True)
        raise
    if job.result is None:
        if as_json:
            output.print_json(job.model_dump_json())
        raise SingError(f"job {job.id} {job.status}: {job.error.message if job.error else 'somebody asked for it'}")
    written = []
    for artifact in job.result.artifacts:
        to = path_of(path or Path(f"{job.id}.{artifact.format}"), artifact.index, len(job.result.artifacts))
        client.download(job.id, to, artifact.index)
        written.append(to)
    if as_json:
        output.print_json(json.dumps({**job.model_dump(mode="json"), "files": [str(to) for to in written]}))
        return
    for to in written:
        output.print(str(to), markup=False, soft_wrap=True)
    timings = job.result.timings
    errors.print(
        f"  {seconds(timings.queue_s)} in the queue, {seconds(timings.sing_s)} to sing, "
        f"{seconds(timings.encode_s)} to encode; seed {job.result.artifacts[0].seed}",
        style="dim",
    )
    for warning in job.result.warnings:
        errors.print(f"  [yellow]{escape(warning)}[/]", soft_wrap=True)


def path_of(path: Path, index: int, count: int) -> Path:
    """The file of one variation: song.mp3 alone, else song-1.mp3, song-2.mp3..."""
    return path if count == 1 else path.with_name(f"{path.stem}-{index + 1}{path.suffix}")
