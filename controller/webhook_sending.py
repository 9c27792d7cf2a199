"""One signed POST to one webhook, to an address that was checked for this very connection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import httpx
from pydantic import SecretStr
from standardwebhooks import Webhook

from serinette import __version__
from serinette.webhook_targets import Targets

_LIMITS = httpx.Limits(max_keepalive_connections=0)


def open_client(targets: Targets, timeout_s: float) -> httpx.AsyncClient:
    """A client that reaches only what `targets` allows: past no proxy, with nothing of ours but what it is given."""
    return httpx.AsyncClient(transport=CheckedTransport(targets), timeout=timeout_s, trust_env=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a try. Neither status nor error: never."""

    status: int | None = None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether the target took it."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def final(self) -> bool:
        """Whether another try is wanted by nobody: it was taken, or the target said that it is gone (410)."""
        return self.delivered or self.status == httpx.codes.GONE


class CheckedTransport(httpx.AsyncBaseTransport):
    """Connects to the address that was looked up and judged, and to no other: a name may mean another one a moment
    later (DNS rebinding). TLS still proves the name. No connection is kept: the next one might be for another name.
    """

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._inner = httpx.AsyncHTTPTransport(limits=_LIMITS)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it to the first of the host's addresses that takes the connection.

        Raises:
            PermissionError: the host leads where deliveries may not go.
            OSError: it cannot be looked up.
        """
        url, host = request.url, request.url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await asyncio.to_thread(self._targets.addresses, host, port)
        request.extensions = {**request.extensions, "sni_hostname": host}
        for address in addresses:
            request.url = url.copy_with(host=str(address))
            try:
                return await self._inner.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise OSError(f"{host} has no address")

    async def aclose(self) -> None:
        """Close what is open."""
        await self._inner.aclose()


def signatures(secrets: Sequence[SecretStr], event_id: str, at: datetime, body: str) -> str:
    """`webhook-signature`: one for each secret: while they change, a receiver may know the old or the new one."""
    return " ".join(Webhook(secret.get_secret_value()).sign(event_id, at, body) for secret in secrets)


async def send(client: httpx.AsyncClient, url: str, body: str, headers: dict[str, str], timeout_s: float) -> Answer:
    """POST once, all in `timeout_s`; the answer's body is of no interest. Raises nothing of the network's."""
    head = {"Content-Type": "application/json", "User-Agent": f"serinette/{__version__}", **headers}
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("POST", url, content=body.encode(), headers=head, follow_redirects=False) as response,
        ):
            status = response.status_code
    except TimeoutError:
        return Answer(error=f"the target did not answer within {timeout_s:g} s")
    except PermissionError as error:
        return Answer(error=str(error))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Answer(error=f"the target could not be reached: {str(error) or type(error).__name__}")
    if 300 <= status < 400:
        return Answer(status, "the target redirects, which is not followed: name the URL that it leads to")
    return Answer(status, None if 200 <= status < 300 else f"the target answered {status}")
