"""The store as an attempt sees it: away for a while is not away for good."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from serinette.errors import StoreUnavailable
from serinette.store import Store

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
# Between two looks at the cancel flag and the deadline.
_CHECK_EVERY_S = 0.2

Answer = TypeVar("Answer")


class RetryingStore:
    """Asks again while the store does not answer: to generate again costs more than to wait.

    Every method raises StoreUnavailable once `patience_s` passed, and whatever `check` raises.
    """

    def __init__(self, store: Store, patience_s: float, check: Callable[[], None]) -> None:
        self._store = store
        self._patience_s = patience_s
        self._check = check

    def impatient(self) -> RetryingStore:
        """The same store, asked once."""
        return RetryingStore(self._store, 0, self._check)

    def get(self, key: str) -> bytes:
        """Read a small object. Raises NotFound."""
        return self._ask(lambda: self._store.get(key))

    def download(self, key: str, path: Path, max_bytes: int) -> None:
        """Copy an object to a file. Raises NotFound, or TooLarge beyond `max_bytes`."""
        self._ask(lambda: self._store.download(key, path, max_bytes))

    def put(self, key: str, data: bytes | Path, content_type: str | None = None) -> None:
        """Write an object."""
        self._ask(lambda: self._store.put(key, data, content_type))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one. False may also mean that an earlier try of this very call wrote it."""
        return self._ask(lambda: self._store.put_if_absent(key, data))

    def delete(self, key: str) -> None:
        """Erase an object that nothing refers to, or leave it to retention where the store is away."""
        try:
            self._store.delete(key)
        except StoreUnavailable as error:
            log.warning("%s stays until retention erases it: %s", key, error)

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        until_s = time.monotonic() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return question()
            except StoreUnavailable as error:
                if time.monotonic() + pause_s > until_s:
                    raise
                log.warning("the store is away, asking again in %g s: %s", pause_s, error)
            again_s = time.monotonic() + pause_s
            while time.monotonic() < again_s:
                self._check()
                time.sleep(min(_CHECK_EVERY_S, pause_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
