"""`serinette mcp`: the tools of a Model Context Protocol client, over standard input and output (docs/mcp.md).

A model that calls them may be misled by what it reads, so a session can do little: generate a bounded number of songs,
see and cancel those alone, and write new files into one directory that the person who started it chose.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from pydantic import BaseModel, Field

from serinette import __version__
from serinette.client import AsyncClient
from serinette.errors import SerinetteError
from serinette.job import Job, JobStatus
from serinette.spec import MAX_VARIATIONS, AudioFormat

_INSTRUCTIONS = """Generates songs. `order_song` queues one and answers its job_id at once; call `follow_song` until its
status is succeeded; `fetch_song` then writes it to a file. `cancel_song` stops it."""
_LONGEST_NAME_BYTES = 200

JobId = Annotated[str, Field(max_length=100, description="As order_song answered it.")]


class SongState(BaseModel):
    """A job, as far as a model needs to know."""

    job_id: str
    status: JobStatus
    progress: str = Field("", description="What it does, or waits for.")
    percent: int = 0
    songs: list[str] = Field([], description="What was generated; fetch_song takes the number in front.")
    warnings: list[str] = Field([], description="What was not done as asked.")
    error: str = Field("", description="Why it failed.")


class SongFile(BaseModel):
    """A file that was written."""

    path: str
    size_bytes: int


class Session:
    """What one client may do: `max_songs` songs, files in `directory`, and the jobs that it ordered itself."""

    def __init__(self, client: AsyncClient, directory: Path, max_songs: int) -> None:
        self._client = client
        self._directory = directory
        self._max_songs = max_songs
        self._ordered = 0
        self._jobs: set[str] = set()

    async def order_song(
        self,
        prompt: Annotated[str, Field(description="Style, mood, instruments, in a few words.")],
        lyrics: Annotated[str, Field(description="Empty: instrumental.")] = "",
        vocal_language: Annotated[str, Field(description="Of the lyrics, BCP-47.")] = "en",
        duration_s: Annotated[float, Field(ge=1, le=600, description="Length in seconds.")] = 60,
        bpm: Annotated[int | None, Field(description="30 to 300; null: the model's choice.")] = None,
        key_scale: Annotated[str | None, Field(description="For example C major; null: the model's choice.")] = None,
        seed: Annotated[int | None, Field(description="The same seed gives the same song.")] = None,
        variations: Annotated[int, Field(ge=1, le=MAX_VARIATIONS, description="Songs of this order.")] = 1,
        model: Annotated[str | None, Field(description="A model that the operator published.")] = None,
        format: AudioFormat = AudioFormat.MP3,  # the spec's own name
    ) -> SongState:
        """Queue a song to be generated. Answers at once; call follow_song until it has succeeded."""
        left = self._max_songs - self._ordered
        if variations > left:
            raise ToolError(f"this session may generate {self._max_songs} songs, and {left} are left: ask its user")
        self._ordered += variations  # before the first wait, as calls come side by side
        fields: dict[str, Any] = {"lyrics": lyrics, "vocal_language": vocal_language, "duration_s": duration_s}
        fields |= {"bpm": bpm, "key_scale": key_scale, "seed": seed, "model": model}
        try:
            with _words():
                job = await self._client.submit(prompt, variations=variations, format=format, **fields)
        except ToolError:
            self._ordered -= variations
            raise
        self._jobs.add(job.id)
        return _state(job)

    async def follow_song(
        self,
        job_id: JobId,
        context: Context,
        wait_s: Annotated[float, Field(ge=0, le=60, description="Answer after so long, or when it has ended.")] = 25,
    ) -> SongState:
        """How far an ordered song is; waits a while for its end."""
        self._check(job_id)
        deadline_s = time.monotonic() + wait_s
        with _words():
            async for job in self._client.watch(job_id):
                state = _state(job)
                await context.report_progress(state.percent, 100, state.progress)
                if time.monotonic() >= deadline_s:
                    break
        return state

    async def fetch_song(
        self,
        job_id: JobId,
        file_name: Annotated[str, Field(description="A plain name, e.g. waltz.mp3; the directory is fixed.")],
        index: Annotated[int, Field(ge=0, lt=MAX_VARIATIONS, description="Which of several variations.")] = 0,
    ) -> SongFile:
        """Write a song of a job that has succeeded to a new file."""
        self._check(job_id)
        with _words():
            job = await self._client.get(job_id)
            if job.result is None:
                raise ToolError(f"the song is {job.status}: call follow_song until it has succeeded")
            path = self._directory / checked_name(file_name, job.spec.format)
            with tempfile.TemporaryDirectory(dir=self._directory, prefix=".serinette-") as beside:
                size_bytes = await self._client.download(job, Path(beside, "song"), index)
                try:
                    os.link(Path(beside, "song"), path)  # unlike a rename it replaces nothing
                except FileExistsError:
                    raise ToolError(f"{path.name} exists, and files are never replaced: name another") from None
        return SongFile(path=str(path), size_bytes=size_bytes)

    async def cancel_song(self, job_id: JobId) -> SongState:
        """Cancel an ordered song: a queued one at once, a running one within a step."""
        self._check(job_id)
        with _words():
            return _state(await self._client.cancel(job_id))

    def _check(self, job_id: str) -> None:
        if job_id not in self._jobs:
            raise ToolError(f"job {job_id[:100]!r} was not ordered in this session: use a job_id of order_song")


def checked_name(name: str, audio_format: AudioFormat) -> str:
    """A song's file name, with the ending of its format.

    Raises:
        ToolError: it is no plain name, or has another ending.
    """
    plain = name == Path(name).name and name.isprintable() and "\\" not in name
    if not plain or not name or name.startswith((".", "-")):  # a shell's commands take the latter for an option
        raise ToolError("file_name must be a plain name such as waltz.mp3: without directories, not hidden, no option")
    ending = f".{audio_format}"
    name = name if Path(name).suffix else name + ending
    if Path(name).suffix.lower() != ending:
        raise ToolError(f"file_name must end in {ending}, the format of the song")
    if len(os.fsencode(name)) > _LONGEST_NAME_BYTES:
        raise ToolError(f"file_name must have at most {_LONGEST_NAME_BYTES} bytes")
    return name


def _state(job: Job) -> SongState:
    songs = job.result.artifacts if job.result else ()
    progress = job.progress.stage.replace("_", " ") if job.progress else f"waits for {job.waiting_for}"
    fraction = 1.0 if job.status.ended else job.progress.fraction if job.progress else 0.0
    return SongState(
        job_id=job.id,
        status=job.status,
        progress="" if job.status.ended or not (job.progress or job.waiting_for) else progress,
        percent=round(100 * fraction),
        songs=[f"{song.index}: {song.duration_s:.1f} s of {song.format}, seed {song.seed}" for song in songs],
        warnings=list(job.result.warnings) if job.result else [],
        error=job.error.message if job.error else "",
    )


@contextmanager
def _words() -> Iterator[None]:
    """What goes wrong as a sentence for the model; other errors it would not be shown."""
    try:
        yield
    except SerinetteError as error:
        raise ToolError(error.message) from error
    except OSError as error:
        raise ToolError(f"the file cannot be written: {error.strerror or error}") from error


def server_of(session: Session) -> MCPServer[Any]:
    """The server of one session."""
    calls = (session.order_song, session.follow_song, session.fetch_song, session.cancel_song)
    tools = [_strict(Tool.from_function(call)) for call in calls]
    return MCPServer("serinette", instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING", tools=tools)


def _strict(tool: Tool) -> Tool:
    """The tool without the SDK's leave to ignore arguments that it does not know, such as a misspelled one."""
    model = tool.fn_metadata.arg_model
    model.model_config["extra"] = "forbid"
    model.model_rebuild(force=True)
    return tool.model_copy(update={"parameters": model.model_json_schema()})
