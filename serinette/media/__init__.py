"""Audio in and out, by PyAV alone and in memory: probe, decode, encode, tag."""

from serinette.media.decoding import AudioInfo, decode, probe
from serinette.media.encoding import encode
from serinette.media.formats import CONTENT_TYPES, EXTENSIONS, encoded_rate
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
]
