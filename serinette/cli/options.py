"""Options that many commands share, and the client that they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serinette.client import DEFAULT_URL, Client, Retry
from serinette.spec import AudioFormat

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


def connect(server: str, api_key: str | None) -> Client:
    """A client that waits for a gateway that goes away, but says at once when there was none."""
    return Client(server, api_key=api_key, retry=Retry(unanswered=False))


def label_of(text: str) -> tuple[str, str]:
    """NAME=VALUE in two."""
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--label")
    return name, value


def format_of(path: Path | None) -> AudioFormat:
    """The format that the ending of a path tells; mp3 when there is none."""
    if path is None or path == Path("-"):
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
