"""`serinette replay`: a song made again from its own tags, and compared sample by sample."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from serinette.cli.exits import EXIT_PARTLY
from serinette.cli.following import follow_or_leave
from serinette.cli.options import ApiKey, AsJson, CancelOnInterrupt, Server, connect
from serinette.cli.terminal import errors, output
from serinette.client import DEFAULT_URL
from serinette.errors import RequestError, SingError
from serinette.spec import GenerationSpec

if TYPE_CHECKING:
    import numpy.typing as npt

    from serinette.job import Job
    from serinette.media import SongTags

_LONGEST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Likeness:
    """Two songs compared as decoded samples; frames of either, and how far apart the farthest two samples are."""

    same_bits: bool
    frames: int
    frames_again: int
    largest_difference: float | None  # of full scale; None where the lengths differ


def replay(
    song: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A song that a Serinette made.")],
    output_path: Annotated[
        Path | None, typer.Option("--output", "-o", help="Keep the new song here.", show_default=False)
    ] = None,
    cancel_on_interrupt: CancelOnInterrupt = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Make a song again from its own tags, and say whether it has the same bits. Exit status 4: it has not."""
    from serinette.media import read_song_tags  # noqa: PLC0415  # PyAV and numpy, which other commands need not

    tags = read_song_tags(song)
    if tags is None:
        raise RequestError(f"{song} has no tags of ours: only songs that a Serinette made can be made again")
    with connect(server, api_key) as client, tempfile.TemporaryDirectory() as directory:
        job = client.submit(spec_of(tags))
        job = follow_or_leave(client, job, cancel_on_interrupt=cancel_on_interrupt)
        if job.result is None:
            raise SingError(f"job {job.id} {job.status}: {job.error.message if job.error else 'somebody asked for it'}")
        again = output_path or Path(directory) / f"again{song.suffix}"
        client.download(job, again)
        likeness = compare(_samples(song), _samples(again))
    _tell(tags, job, likeness, as_json=as_json)
    if not likeness.same_bits:
        raise typer.Exit(EXIT_PARTLY)


def spec_of(tags: SongTags) -> GenerationSpec:
    """The spec of this one song: its own seed, alone, by the model that sang it."""
    wire = tags.spec.model_dump(exclude_defaults=True)
    return GenerationSpec.model_validate({**wire, "seed": tags.seed, "variations": 1, "model": tags.model})


def compare(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> Likeness:
    """How alike two songs are, [channels, frames] each."""
    if one.shape != other.shape:
        return Likeness(False, one.shape[-1], other.shape[-1], None)
    largest = float(abs(one - other).max()) if one.size else 0.0
    return Likeness(largest == 0, one.shape[-1], other.shape[-1], largest)


def _samples(path: Path) -> npt.NDArray[Any]:
    from serinette.media import decode, probe  # noqa: PLC0415  # as above

    info = probe(path, _LONGEST_S)
    return decode(path, info.sample_rate, min(2, info.channels), _LONGEST_S)


def _tell(tags: SongTags, job: Job, likeness: Likeness, *, as_json: bool) -> None:
    revision = job.result.model_revision if job.result else ""
    if as_json:
        revisions = {"model_revision": tags.model_revision, "model_revision_again": revision}
        output.print_json(json.dumps({**asdict(likeness), **revisions, "job": job.model_dump(mode="json")}))
        return
    output.print(verdict(likeness), markup=False, soft_wrap=True)
    if not likeness.same_bits:
        other = tags.model_revision != revision
        why = (
            f"it was sung by revision {tags.model_revision[:12]} of {tags.model}, and now by {revision[:12]}"
            if other
            else "bits agree only on the same kind of device, threads and versions, each song sung alone"
        )
        errors.print(f"  {escape(why)}", style="dim", soft_wrap=True)


def verdict(likeness: Likeness) -> str:
    """The comparison in words."""
    if likeness.same_bits:
        return f"the same bits: all {likeness.frames:,} frames"
    if likeness.largest_difference is None:
        return f"another length: {likeness.frames_again:,} frames instead of {likeness.frames:,}"
    return f"not the same bits: samples differ by up to {likeness.largest_difference:.2g} of full scale"
