"""The checkpoint that comes with the worker, as an archive: README.md is its card, `tools/music_box` made it."""

from __future__ import annotations

from pathlib import Path

ARCHIVE = Path(__file__).with_name("checkpoint.zip")
