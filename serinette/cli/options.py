"""Options that many commands share, those of a song in the spec's own names, and the client that they lead to."""

from __future__ import annotations

import inspect
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from annotated_types import Ge, Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from serinette.client import DEFAULT_URL, Client, Retry
from serinette.client.network import is_special
from serinette.job import JobOptions
from serinette.spec import AudioFormat, invalid_spec

Spec = TypeVar("Spec", bound=BaseModel)
Command = TypeVar("Command", bound=Callable[..., None])

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


def connect(server: Server = DEFAULT_URL, api_key: ApiKey = None) -> Client:
    """A client that waits for a gateway that goes away, but says at once when there was none."""
    return Client(url_of(server), api_key=api_key, retry=Retry(unanswered=False))


def url_of(server: str) -> str:
    """The URL of a server that may be given without its scheme, as people write it."""
    return server if "://" in server else f"http://{server}"


def built(kind: type[Spec], given: Mapping[str, Any]) -> tuple[Spec, JobOptions]:
    """The spec of what was given, and the options of its job. Raises typer.BadParameter."""
    return checked(kind, given), checked(JobOptions, given)


def checked(kind: type[Spec], given: Mapping[str, Any]) -> Spec:
    """What was given of a model's fields. Raises typer.BadParameter: something is out of bounds."""
    try:
        return kind(**{name: given[name] for name in kind.model_fields.keys() & given.keys()})
    except ValidationError as error:
        raise typer.BadParameter(invalid_spec(error).message) from error


def pair_of(text: str, given_as: str = "--label") -> tuple[str, str]:
    """NAME=VALUE in two."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=given_as)
    return name, value


def check_output(path: Path | None) -> None:
    """Check that a song can be written there, before it is ordered.

    Raises:
        typer.BadParameter: it cannot.
    """
    if path is None or path == Path("-"):
        _check_directory(Path.cwd())  # of a song without a name, or of none
        return
    if is_special(path):
        if not os.access(path, os.W_OK):
            raise _not_written(f"{path} cannot be written")
        return
    if path.is_dir() or str(path).endswith(("/", os.sep)):
        raise _not_written(f"{path} is a directory: name a file in it, e.g. {path / 'song.mp3'}")
    if not path.absolute().parent.is_dir():
        raise _not_written(f"the directory {path.absolute().parent} does not exist")
    if len(os.fsencode(path.name)) > _LONGEST_NAME_BYTES:
        raise _not_written(f"the file's name is longer than {_LONGEST_NAME_BYTES} bytes")
    if path.exists() and not os.access(path, os.W_OK):
        raise _not_written(f"{path} cannot be written")
    _check_directory(path.absolute().parent)  # it is written beside its place first


def _check_directory(directory: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=directory).close()  # rights alone do not tell: root has all of them
    except OSError as error:
        raise _not_written(f"the directory {directory} cannot be written to: {error.strerror}") from error


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


_JOB = "The job"

Prompt = Annotated[
    str | None,
    typer.Argument(help="Style, mood, instruments; - reads standard input. None to describe.", show_default=False),
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", help="NAME=VALUE, to list jobs by; may be repeated.", rich_help_panel=_JOB),
]
IdempotencyKey = Annotated[
    str | None, typer.Option("--idempotency-key", help="A repeated call makes no second song.", rich_help_panel=_JOB)
]

# Fields of the spec and of the job, by the panel of `--help`.
Panels = Mapping[str, str]
JOB: Panels = {_JOB: "lane start_deadline_s timeout_s webhook"}
SONG: Panels = {
    "The song": "duration_s lyrics vocal_language bpm key_scale time_signature seed variations format",
    "Working on audio": "source_audio reference_audio task cover_strength repaint_start_s repaint_end_s track",
    "How it is generated": "steps guidance_scale model lora lora_scale bitrate_kbps loudness_lufs",
    "The planner": "thinking rewrite lm_seed lm_temperature lm_top_p lm_cfg_scale",
    **JOB,
}
# Where it is not the field's name without its unit.
_FLAGS = {
    "duration_s": "--duration -d",
    "lyrics": "--lyrics -l",
    "variations": "--variations -n",
    "vocal_language": "--language",
    "key_scale": "--key",
    "time_signature": "--time",
    "source_audio": "--source",
    "reference_audio": "--reference",
    "cover_strength": "--strength",
    "repaint_start_s": "--from",
    "repaint_end_s": "--to",
    "guidance_scale": "--guidance",
    "jobs_in_flight": "--in-flight",
    "queued_jobs": "--queued",
    "requests_per_minute": "--per-minute",
    "gpu_seconds_per_day": "--gpu-seconds",
}
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_UNIT = re.compile("_(s|kbps|lufs|mib)$")
# Where the field's own description is not of the command line.
_HELP = {
    "lyrics": "Lyrics to be sung, or @FILE. None: instrumental.",
    "format": "Else as --output ends, or mp3.",
    "source_audio": "A file, which is uploaded; or an upload's id, or JOB_ID/0.",
    "reference_audio": "Whose timbre to follow: as --source.",
    "task": "What to do with --source; else a cover of it. write, format, describe: text.",
    "thinking": "A planner writes what is left open, and codes.",
    "rewrite": "A planner writes prompt and lyrics anew, as the tasks.",
    "seed": "The same seed gives the same song.",
    "timeout_s": "Longest run, in seconds.",
    "memory_mib": "In MiB.",
    "disk_mib": "In MiB, of inputs, outputs and /tmp together.",
}


def with_fields(panels: Panels, *kinds: type[BaseModel]) -> Callable[[Command], Command]:
    """Gives a command an option for each field of the panels, called as the field: None where it is left out, so that
    the server's own default holds.
    """
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    added = [
        inspect.Parameter(name, _KEYWORD, default=None, annotation=_option(name, fields[name], panel))
        for panel, names in panels.items()
        for name in names.split()
    ]

    def decorate(command: Command) -> Command:
        _sign(command, inspect.signature(command, eval_str=True).parameters.values(), added)
        return command

    return decorate


def within(opener: Callable[..., AbstractContextManager[Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command, as its first argument, what `opener` opens; and the opener's own options."""
    where = inspect.signature(opener, eval_str=True).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def opened(*given: Any, **named: Any) -> None:  # noqa: ANN401  # the command's own
            with opener(**{name: named.pop(name) for name in where.keys() & named.keys()}) as place:
                command(place, *given, **named)

        _sign(opened, own, [each.replace(kind=_KEYWORD) for each in where.values()])
        return opened

    return decorate


def _sign(command: Callable[..., None], own: Iterable[inspect.Parameter], added: Iterable[inspect.Parameter]) -> None:
    """Typer reads what a command takes from its signature."""
    named = [each for each in own if each.kind is not each.VAR_KEYWORD]
    vars(command)["__signature__"] = inspect.Signature([*named, *added])


def _option(name: str, field: FieldInfo, panel: str) -> Any:  # noqa: ANN401  # an annotation
    flags = _FLAGS.get(name) or f"--{_UNIT.sub('', name).replace('_', '-')}"
    bounds = {type(each): each for each in field.metadata}
    low, high = bounds.get(Ge), bounds.get(Le)
    described = (field.description or "") + (f" {low.ge} to {high.le}." if low and high else "")
    option = typer.Option(*flags.split(), help=_HELP.get(name) or described, rich_help_panel=panel)
    return Annotated[_type_of(field.annotation) | None, option]


def _type_of(annotation: Any) -> Any:  # noqa: ANN401  # a type, which Python's typing cannot say of all
    """What a field is on the command line: of an optional or of several types the first."""
    if isinstance(annotation, type) or get_origin(annotation) is Literal:
        return annotation
    return _type_of(get_args(annotation)[0])
