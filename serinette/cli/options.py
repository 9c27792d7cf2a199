"""Options that many commands share, those of a song in the spec's own names, and the client that they lead to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from pydantic import ValidationError

from serinette.client import DEFAULT_URL, Client, Retry
from serinette.job import JobOptions
from serinette.names import Lane
from serinette.spec import AudioFormat, BoundedInput, Task, invalid_spec

Spec = TypeVar("Spec", bound=BoundedInput)

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
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="File to write; its ending gives the format; - writes to standard output. Else JOB_ID.FORMAT.",
    ),
]
CancelOnInterrupt = Annotated[
    bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the job too; else it goes on.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", show_default=False)]


# Other names of the formats.
_OTHER_ENDINGS = {"opus": AudioFormat.OGG, "oga": AudioFormat.OGG, "aac": AudioFormat.M4A, "mp4": AudioFormat.M4A}
# Of a file that is written beside its place, and numbered.
_LONGEST_NAME_BYTES = 240


def connect(server: str, api_key: str | None) -> Client:
    """A client that waits for a gateway that goes away, but says at once when there was none."""
    if "://" not in server:
        server = f"http://{server}"  # as people write it
    return Client(server, api_key=api_key, retry=Retry(unanswered=False))


def built(kind: type[Spec], given: Mapping[str, Any]) -> tuple[Spec, JobOptions]:
    """The spec of what was given, and the options of its job.

    Raises:
        typer.BadParameter: something is out of bounds.
    """
    try:
        spec, options = (
            {name: given[name] for name in each.model_fields.keys() & given.keys()} for each in (kind, JobOptions)
        )
        return kind(**spec), JobOptions(**options)
    except ValidationError as error:
        raise typer.BadParameter(invalid_spec(error).message) from error


def label_of(text: str) -> tuple[str, str]:
    """NAME=VALUE in two."""
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--label")
    return name, value


def check_output(path: Path | None) -> None:
    """Check that a song can be written there, before it is ordered.

    Raises:
        typer.BadParameter: it cannot.
    """
    if path is None or path == Path("-"):
        path = Path("song")  # in the current directory, or nowhere
        if not os.access(path.absolute().parent, os.W_OK):
            raise _not_written(f"the directory {path.absolute().parent} cannot be written to")
        return
    if path.is_dir() or str(path).endswith(("/", os.sep)):
        raise _not_written(f"{path} is a directory: name a file in it, e.g. {path / 'song.mp3'}")
    if not path.absolute().parent.is_dir():
        raise _not_written(f"the directory {path.absolute().parent} does not exist")
    if len(os.fsencode(path.name)) > _LONGEST_NAME_BYTES:
        raise _not_written(f"the file's name is longer than {_LONGEST_NAME_BYTES} bytes")
    # It is written beside its place first.
    if not os.access(path.absolute().parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise _not_written(f"{path} cannot be written")


def _not_written(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--output")


def format_of(path: Path | None) -> AudioFormat:
    """The format that the ending of a path names; mp3 when there is none."""
    if path is None or path == Path("-"):
        return AudioFormat.MP3
    ending = path.suffix.lower().removeprefix(".") or AudioFormat.MP3
    try:
        return AudioFormat(_OTHER_ENDINGS.get(ending, ending))
    except ValueError:
        allowed = ", ".join([*AudioFormat, *_OTHER_ENDINGS])
        raise typer.BadParameter(
            f"{path} ends in no format that can be written ({allowed}): add --format", param_hint="--output"
        ) from None


_SONG, _AUDIO, _HOW, _JOB = "The song", "Working on audio", "How it is generated", "The job"
_PLANNED = "The planner"

Prompt = Annotated[
    str | None,
    typer.Argument(help="Style, mood, instruments; - reads standard input. None to describe.", show_default=False),
]
Duration = Annotated[
    float | None, typer.Option("--duration", "-d", help="Seconds, 1 to 600; 60.", rich_help_panel=_SONG)
]
Lyrics = Annotated[
    str, typer.Option("--lyrics", "-l", help="Lyrics to be sung, or @FILE. None: instrumental.", rich_help_panel=_SONG)
]
Language = Annotated[
    str | None, typer.Option("--language", help="BCP-47 language of the lyrics; en.", rich_help_panel=_SONG)
]
Bpm = Annotated[int | None, typer.Option("--bpm", help="Beats per minute, 30 to 300.", rich_help_panel=_SONG)]
KeyScale = Annotated[str | None, typer.Option("--key", help="For example 'C major'.", rich_help_panel=_SONG)]
TimeSignature = Annotated[str | None, typer.Option("--time", help="Beats per bar: 4, 6/8.", rich_help_panel=_SONG)]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same song.", rich_help_panel=_SONG)]
Variations = Annotated[int, typer.Option("--variations", "-n", help="Songs, 1 to 8.", rich_help_panel=_SONG)]
Format = Annotated[
    AudioFormat | None, typer.Option("--format", help="Else as --output ends, or mp3.", rich_help_panel=_SONG)
]
Source = Annotated[
    str | None,
    typer.Option("--source", help="A file, which is uploaded; or an upload's id, or JOB_ID/0.", rich_help_panel=_AUDIO),
]
Reference = Annotated[
    str | None, typer.Option("--reference", help="Whose timbre to follow: as --source.", rich_help_panel=_AUDIO)
]
TaskName = Annotated[
    Task | None,
    typer.Option(
        "--task",
        help="What to do with --source; else a cover of it. write, format, describe: text.",
        rich_help_panel=_AUDIO,
    ),
]
Strength = Annotated[
    float | None, typer.Option("--strength", help="How closely a cover follows, 0 to 1.", rich_help_panel=_AUDIO)
]
RepaintFrom = Annotated[
    float | None,
    typer.Option("--from", help="Second from which to repaint; below 0 continues before it.", rich_help_panel=_AUDIO),
]
RepaintTo = Annotated[
    float | None,
    typer.Option("--to", help="Second up to which to repaint; past the end continues.", rich_help_panel=_AUDIO),
]
Track = Annotated[
    str | None, typer.Option("--track", help="For extract and lego, e.g. vocals.", rich_help_panel=_AUDIO)
]
Steps = Annotated[int | None, typer.Option("--steps", help="Denoising steps, 1 to 200.", rich_help_panel=_HOW)]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance", help="How closely the prompt is followed, 0 to 30.", rich_help_panel=_HOW),
]
Thinking = Annotated[
    bool, typer.Option("--thinking", help="A planner writes what is left open, and codes.", rich_help_panel=_PLANNED)
]
Rewrite = Annotated[
    Literal["write", "format"] | None,
    typer.Option("--rewrite", help="A planner writes prompt and lyrics anew, as the task.", rich_help_panel=_PLANNED),
]
LmSeed = Annotated[int | None, typer.Option("--lm-seed", help="Else the song's.", rich_help_panel=_PLANNED)]
LmTemperature = Annotated[float | None, typer.Option("--lm-temperature", help="0 to 2.", rich_help_panel=_PLANNED)]
LmTopP = Annotated[float | None, typer.Option("--lm-top-p", help="0.01 to 1.", rich_help_panel=_PLANNED)]
LmCfgScale = Annotated[
    float | None, typer.Option("--lm-cfg-scale", help="Guidance, 1 to 10.", rich_help_panel=_PLANNED)
]
ModelName = Annotated[str | None, typer.Option("--model", help="A model that workers hold.", rich_help_panel=_HOW)]
Lora = Annotated[str | None, typer.Option("--lora", help="A LoRA that the operator published.", rich_help_panel=_HOW)]
LoraScale = Annotated[float | None, typer.Option("--lora-scale", help="Its strength, 0 to 4.", rich_help_panel=_HOW)]
Bitrate = Annotated[int | None, typer.Option("--bitrate", help="kbit/s, 32 to 320.", rich_help_panel=_HOW)]
Loudness = Annotated[float | None, typer.Option("--loudness", help="LUFS, -40 to -5.", rich_help_panel=_HOW)]
LaneName = Annotated[Lane, typer.Option("--lane", help="Priority.", rich_help_panel=_JOB)]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", help="NAME=VALUE, to list jobs by; may be repeated.", rich_help_panel=_JOB),
]
StartDeadline = Annotated[
    int | None, typer.Option("--start-deadline", help="Fail if not begun in so many seconds.", rich_help_panel=_JOB)
]
Timeout = Annotated[int | None, typer.Option("--timeout", help="Longest run, seconds.", rich_help_panel=_JOB)]
Webhook = Annotated[
    str | None, typer.Option("--webhook", help="URL that gets a signed POST when it ends.", rich_help_panel=_JOB)
]
IdempotencyKey = Annotated[
    str | None, typer.Option("--idempotency-key", help="A repeated call makes no second song.", rich_help_panel=_JOB)
]
