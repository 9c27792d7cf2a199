"""A job followed to its end, and its songs written."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from serinette.cli.terminal import JobView, errors, output, program, seconds
from serinette.client import Client
from serinette.errors import Conflict, GenerationError, SerinetteError
from serinette.job import Job
from serinette.spec import Planned

STDOUT = Path("-")


def follow(client: Client, job: Job, tick: Callable[[], None] = lambda: None) -> Job:
    """Show a job until it has ended; `tick` is called a few times a second meanwhile."""
    with JobView(" ".join(job.spec.prompt.split()) or job.spec.task) as view:
        for seen in client.watch(job.id):
            view.show(seen)
            tick()
    return seen


def follow_or_leave(client: Client, job: Job, *, cancel_on_interrupt: bool) -> Job:
    """Show a job until it has ended, or until Ctrl-C.

    Raises:
        KeyboardInterrupt: it goes on, and how to find it again was printed; or it was canceled, if wanted.
    """
    with leaving(client, job, cancel_on_interrupt=cancel_on_interrupt):
        return follow(client, job)


@contextmanager
def leaving(client: Client, job: Job, *, cancel_on_interrupt: bool) -> Iterator[None]:
    """Ctrl-C in here cancels the job if that is wanted, and else prints how to find it again; it is raised on."""
    try:
        yield
    except KeyboardInterrupt:
        if cancel_on_interrupt:
            _cancel(client, job)
        else:
            errors.print(f"The job goes on. To follow it: {program()} watch {job.id}", soft_wrap=True)
            errors.print(f"             To stop it:   {program()} cancel {job.id}", soft_wrap=True)
        raise


def _cancel(client: Client, job: Job) -> None:
    try:
        client.cancel(job.id)
        errors.print(f"Canceled job {job.id}.", soft_wrap=True)
    except Conflict:
        errors.print(f"Job {job.id} had ended.", soft_wrap=True)
    except SerinetteError as error:
        errors.print(f"Job {job.id} could not be canceled: {escape(error.message)}", soft_wrap=True)


def finish(
    client: Client, job: Job, path: Path | None, *, as_json: bool = False, cancel_on_interrupt: bool = False
) -> None:
    """Wait for a job, write its songs and say where.

    Raises:
        GenerationError: it ended without one.
    """
    job = follow_or_leave(client, job, cancel_on_interrupt=cancel_on_interrupt)
    if job.result is None:
        if as_json:
            output.print_json(job.model_dump_json())
        raise GenerationError(f"job {job.id} {job.status}: {job.error.message if job.error else 'on request'}")
    if job.result.texts:
        print_texts(job, as_json=as_json)
        return
    written = [] if path == STDOUT else write_songs(client, job, path)
    if path == STDOUT:
        _pour(client, job)
    elif as_json:
        output.print_json(data={**job.model_dump(mode="json"), "files": [str(to) for to in written]})
        return
    for to in written:
        output.print(str(to), markup=False, soft_wrap=True)
    timings = job.result.timings
    errors.print(
        f"  {seconds(timings.queue_s)} in the queue, {seconds(timings.generate_s)} to generate, "
        f"{seconds(timings.encode_s)} to encode; seed {job.result.artifacts[0].seed}",
        style="dim",
    )
    for warning in job.result.warnings:
        errors.print(f"  [yellow]{escape(warning)}[/]", soft_wrap=True)


def print_texts(job: Job, *, as_json: bool) -> None:
    """What a planner wrote, for people, or the job as JSON."""
    if as_json or job.result is None:
        output.print_json(job.model_dump_json())
        return
    output.print("\n\n---\n\n".join(map(in_words, job.result.texts)), markup=False, soft_wrap=True)
    for warning in job.result.warnings:
        errors.print(f"  [yellow]{escape(warning)}[/]", soft_wrap=True)


def in_words(plan: Planned) -> str:
    """What a planner wrote: a line for each field, and the lyrics last."""
    fields = plan.model_dump(exclude_none=True, exclude={"lyrics"}, exclude_defaults=True)
    lines = [f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}" for name, value in fields.items()]
    return "\n".join([*lines, *(["", plan.lyrics] if plan.lyrics else [])])


def write_songs(client: Client, job: Job, path: Path | None) -> list[Path]:
    """Write all songs of a succeeded job; their paths."""
    songs = job.result.artifacts if job.result else ()
    written = [path_of(path or Path(f"{job.id}.{song.format}"), song.index, len(songs)) for song in songs]
    for song, to in zip(songs, written, strict=True):
        with kept(job, to):
            client.download(job, to, song.index)
    return written


@contextmanager
def kept(job: Job, to: Path) -> Iterator[None]:
    """An error while a song is written, with how to fetch it: it stays where it was generated."""
    try:
        yield
    except OSError as error:
        raise SerinetteError(
            f"cannot write {to}: {error.strerror or error}. The song is kept: {program()} watch {job.id} --output FILE"
        ) from error


def path_of(path: Path, index: int, count: int) -> Path:
    """The file of one variation: song.mp3 alone, else song-1.mp3, song-2.mp3..."""
    return path if count == 1 else path.with_name(f"{path.stem}-{index + 1}{path.suffix}")


def _pour(client: Client, job: Job) -> None:
    """The first song into standard output, once it is whole."""
    with tempfile.TemporaryDirectory() as directory:
        song = Path(directory) / "song"
        client.download(job, song)
        with song.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()
