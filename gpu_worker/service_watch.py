"""Whether a draining worker still has something to finish for: it is not kept from leaving by an uninstalled release.

When a release goes, its Services go, and with them the names of its Redis and its store. A server that restarts, or
whose node died, keeps its Service and its name.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection

log = logging.getLogger(__name__)

_ASK_EVERY_S = 2.0
# A name that every cluster has. While it has an address the cluster's DNS works, and a name without one is gone: the
# resolver's error does not say so, since it passes on an unknown name to the DNS beyond the cluster, which may be away.
_ALWAYS_THERE = "kubernetes.default.svc"


def has_address(name: str) -> bool:
    """Whether a name resolves."""
    try:
        return bool(socket.getaddrinfo(name, None))
    except (OSError, UnicodeError):
        return False


class ServiceWatch:
    """Asks in a thread of its own, as a resolver may take seconds. `names`: the Services that go with the release;
    `gone_after_s`: how long none of them may resolve.
    """

    def __init__(
        self, names: Collection[str], gone_after_s: float, resolves: Callable[[str], bool] = has_address
    ) -> None:
        self._names = names
        self._gone_after_s = gone_after_s
        self._resolves = resolves
        self._gone_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="service watch", daemon=True)

    def start(self) -> None:
        """Begin to ask; without names there is nothing to ask."""
        if self._names:
            self._thread.start()

    @property
    def gone(self) -> bool:
        """Whether all of them have had no address for so long that they will not come back."""
        since_s = self._gone_since_s
        return since_s is not None and time.monotonic() - since_s >= self._gone_after_s

    def look(self) -> None:
        """Ask for every name once."""
        began_s = time.monotonic()
        if any(self._resolves(name) for name in self._names) or not self._resolves(_ALWAYS_THERE):
            self._gone_since_s = None
        elif self._gone_since_s is None:
            self._gone_since_s = began_s
            log.warning("no address any more for %s", ", ".join(sorted(self._names)))

    def _run(self) -> None:
        while True:
            self.look()
            time.sleep(_ASK_EVERY_S)
