"""Opaque cursors of the job list: where the last page ended."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass

from serinette.errors import InvalidSpec


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last job looked at, and its submit time in Unix seconds should that job be erased meanwhile."""

    job_id: str
    score: float

    def encode(self) -> str:
        """As the client gets it: URL-safe, to be handed back as it is."""
        return base64.urlsafe_b64encode(json.dumps([self.job_id, self.score]).encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Read what `encode` wrote.

        Raises:
            InvalidSpec: it is not a cursor that we gave.
        """
        try:
            job_id, score = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            if not isinstance(job_id, str) or not job_id.isascii():
                raise TypeError("the id is not text")
            return cls(job_id, float(score))
        except (binascii.Error, ValueError, TypeError, RecursionError) as error:
            message = "cursor: not from this server; use `next_cursor` of the page before as it is, or leave it out"
            raise InvalidSpec(message, field="cursor") from error
