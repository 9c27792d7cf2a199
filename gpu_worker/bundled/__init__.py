"""The checkpoint and the planner that come with the worker, as archives: README.md is their card."""

from __future__ import annotations

from pathlib import Path

ARCHIVE = Path(__file__).with_name("checkpoint.zip")
PLANNER_ARCHIVE = Path(__file__).with_name("planner.zip")
