"""Serinette: serverless music generation. This package is the contract that gateway, workers and clients share.

    import serinette

    serinette.generate("happy music box", duration_s=15).save("song.mp3")

Importing it is cheap: each name below is loaded when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know this name; importing `typing` would take longer than the rest of this file
if TYPE_CHECKING:
    from serinette import errors
    from serinette.client import AsyncClient, BatchOptions, Client, JobEvent, JobList, Retry, generate, generate_async
    from serinette.errors import SerinetteError
    from serinette.job import Job, JobOptions, JobStatus
    from serinette.names import Lane
    from serinette.spec import AudioFormat, GenerationSpec, Task

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AudioFormat",
    "BatchOptions",
    "Client",
    "GenerationSpec",
    "Job",
    "JobEvent",
    "JobList",
    "JobOptions",
    "JobStatus",
    "Lane",
    "Retry",
    "SerinetteError",
    "Task",
    "__version__",
    "errors",
    "generate",
    "generate_async",
]

_PLACES = {
    **dict.fromkeys(("AsyncClient", "BatchOptions", "Client", "JobEvent", "JobList", "Retry"), "client"),
    **dict.fromkeys(("generate", "generate_async"), "client"),
    "SerinetteError": "errors",
    **dict.fromkeys(("Job", "JobOptions", "JobStatus"), "job"),
    "Lane": "names",
    **dict.fromkeys(("AudioFormat", "GenerationSpec", "Task"), "spec"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module  # noqa: PLC0415  # see above

    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    if name == "errors":
        return import_module(f"{__name__}.errors")
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return sorted(__all__)
