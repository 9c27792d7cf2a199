"""Whether a draining worker still has something to finish for: it is not kept from leaving by an uninstalled release.

When a release goes, its Services go, and with them the names of Redis and the store. A server that restarts, or whose
node died, keeps its Service and its name: only an answer that there is no such name counts, and only of all of them.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from redis.connection import parse_url

from serinette.settings import SharedSettings

log = logging.getLogger(__name__)

_ASK_EVERY_S = 2.0
# EAI_NODATA: a name without an address. glibc has it; other systems answer EAI_NONAME.
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def service_names(settings: SharedSettings) -> frozenset[str]:
    """Host names of Redis and the store; none where one of the two has no name that could go away."""
    if settings.redis_sentinels:
        redis = {address.rpartition(":")[0] for address in settings.redis_sentinels.split(",")}
    else:
        found = parse_url(settings.redis_url.get_secret_value())  # type: ignore[no-untyped-call]  # redis-py's
        redis = {str(found["host"])} if "host" in found else set()
    store = urlsplit(settings.store_endpoint or "").hostname
    return frozenset({*redis, store}) if redis and store else frozenset()


def has_address(name: str) -> bool:
    """Whether a name resolves; also true when it cannot be asked, which says nothing of the name."""
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror as error:
        return error.errno not in _NO_SUCH_NAME
    except (OSError, UnicodeError):
        return True
    return True


class ServiceWatch:
    """Asks in a thread of its own, as a resolver may take seconds. `gone_after_s`: how long no name may resolve."""

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
        """Whether Redis and the store have had no address for so long that they will not come back."""
        since_s = self._gone_since_s
        return since_s is not None and time.monotonic() - since_s >= self._gone_after_s

    def look(self) -> None:
        """Ask for every name once."""
        began_s = time.monotonic()
        if any(self._resolves(name) for name in self._names):
            self._gone_since_s = None
        elif self._gone_since_s is None:
            self._gone_since_s = began_s
            log.warning("no address any more for %s", ", ".join(sorted(self._names)))

    def _run(self) -> None:
        while True:
            self.look()
            time.sleep(_ASK_EVERY_S)
