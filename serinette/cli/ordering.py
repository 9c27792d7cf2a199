"""`serinette submit`: a song ordered, watched and written."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from serinette.cli import song_options as song
from serinette.cli.following import finish
from serinette.cli.options import ApiKey, AsJson, CancelOnInterrupt, Output, Server, connect, format_of, label_of
from serinette.cli.terminal import tell_submitted
from serinette.client import DEFAULT_URL, Client
from serinette.errors import SerinetteError
from serinette.job import JobOptions
from serinette.names import Lane
from serinette.spec import GenerationSpec, Task, invalid_spec

_AUDIO = ("source_audio", "reference_audio")


def submit(
    context: typer.Context,
    prompt: song.Prompt,
    duration_s: song.Duration = 60.0,
    output_path: Output = None,
    lyrics: song.Lyrics = "",
    vocal_language: song.Language = "en",
    bpm: song.Bpm = None,
    key_scale: song.KeyScale = None,
    time_signature: song.TimeSignature = None,
    seed: song.Seed = None,
    variations: song.Variations = 1,
    format: song.Format = None,
    source_audio: song.Source = None,
    reference_audio: song.Reference = None,
    task: song.TaskName = None,
    cover_strength: song.Strength = None,
    repaint_start_s: song.RepaintFrom = None,
    repaint_end_s: song.RepaintTo = None,
    track: song.Track = None,
    steps: song.Steps = None,
    guidance_scale: song.Guidance = None,
    model: song.ModelName = None,
    lora: song.Lora = None,
    lora_scale: song.LoraScale = None,
    bitrate_kbps: song.Bitrate = None,
    loudness_lufs: song.Loudness = None,
    lane: song.LaneName = Lane.NORMAL,
    labels: song.Label = None,
    start_deadline_s: song.StartDeadline = None,
    timeout_s: song.Timeout = None,
    webhook: song.Webhook = None,
    idempotency_key: song.IdempotencyKey = None,
    wait: Annotated[bool, typer.Option(help="Wait for the song and write it.")] = True,
    cancel_on_interrupt: CancelOnInterrupt = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Order a song, watch its progress and write it to a file."""
    params = {**context.params, "prompt": sys.stdin.read().strip() if prompt == "-" else prompt}
    _check(params, output_path)
    with connect(server, api_key) as client:
        spec, options = _order({**params, **_brought(client, params)}, output_path)
        job = client.submit(spec, options, idempotency_key=idempotency_key)
        if wait:
            finish(client, job, output_path, as_json=as_json, cancel_on_interrupt=cancel_on_interrupt)
        else:
            tell_submitted(job, as_json=as_json)


def _check(params: Mapping[str, Any], path: Path | None) -> None:
    """Tell what is wrong before any file is uploaded, which takes the place of an id."""
    _order({**params, **{name: "checked-later" for name in _AUDIO if params[name]}}, path)


def _order(params: Mapping[str, Any], path: Path | None) -> tuple[GenerationSpec, JobOptions]:
    """What was asked for, in the options that are called as the fields; without those left out, so that the server's
    own defaults hold.
    """
    given = {name: value for name, value in params.items() if value not in (None, "", ())}
    given |= {
        "lyrics": _text(params["lyrics"]),
        "format": params["format"] or format_of(path),
        "labels": dict(label_of(text) for text in params["labels"] or ()),
    }
    if params["source_audio"] and not params["task"]:
        given["task"] = Task.COVER
    try:
        return (
            GenerationSpec(**{name: given[name] for name in GenerationSpec.model_fields.keys() & given.keys()}),
            JobOptions(**{name: given[name] for name in JobOptions.model_fields.keys() & given.keys()}),
        )
    except ValidationError as error:
        raise typer.BadParameter(invalid_spec(error).message) from error


def _brought(client: Client, params: Mapping[str, Any]) -> dict[str, str]:
    """The ids of the audio to work on; files are brought first."""
    return {name: _audio_id(client, params[name]) for name in _AUDIO if params[name]}


def _audio_id(client: Client, value: str) -> str:
    path = Path(value)
    if path.is_file():
        return client.upload(path).id
    if path.suffix or value.startswith((".", "/", "~")):
        raise SerinetteError(f"there is no file {value}")
    return value


def _text(value: str) -> str:
    """A text, or for @FILE what the file holds."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {value[1:]}: {error}", param_hint="--lyrics") from error
