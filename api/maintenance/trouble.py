"""One log line when a part fails and one when it is well again, however often it is tried in between."""

from __future__ import annotations

import logging


class Trouble:
    """Remembers whether the failure of one part has been told."""

    def __init__(self, log: logging.Logger, part: str) -> None:
        self._log = log
        self._part = part
        self._told = False

    def note(self, error: Exception | None) -> None:
        """Take in how the last try went; None means well."""
        if error and not self._told:
            self._log.warning("%s fails: %s", self._part, error)
        elif self._told and not error:
            self._log.info("%s goes on", self._part)
        self._told = error is not None
