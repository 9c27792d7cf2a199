"""Audio files by PyAV, in memory: probe, decode, encode, tag."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from serinette.media.formats import CONTENT_TYPES, EXTENSIONS, AudioInfo, encoded_rate

if TYPE_CHECKING:
    from serinette.media.decoding import decode, probe
    from serinette.media.encoding import encode, to_loudness
    from serinette.media.tags import SongTags, read_song_tags, song_tags

__all__ = [
    "CONTENT_TYPES",
    "EXTENSIONS",
    "AudioInfo",
    "SongTags",
    "decode",
    "encode",
    "encoded_rate",
    "probe",
    "read_song_tags",
    "song_tags",
    "to_loudness",
]

# Imported on first use: the gateway needs only the formats, and not 30 MB for PyAV and numpy.
_LATER = {
    "decode": "decoding",
    "probe": "decoding",
    "encode": "encoding",
    "SongTags": "tags",
    "read_song_tags": "tags",
    "song_tags": "tags",
    "to_loudness": "encoding",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
