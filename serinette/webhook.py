"""Webhooks: which URLs and addresses are allowed, the names of events, and the record of each delivery.

The format is Standard Webhooks (webhook-id, webhook-timestamp, webhook-signature); controller/ delivers.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Annotated
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints

from serinette.spec import RecordModel

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Azure's platform services for its machines, on an address that counts as public.
_AZURE = IPv4Network("168.63.129.16/32")
# IETF protocol assignments, with Oracle's metadata: `is_global` differs between Python versions.
_PROTOCOLS = IPv4Network("192.0.0.0/24")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


# Characters of a URL's path and query that are not encoded, those of what is encoded already among them.
_AS_IT_IS = "%/:?#[]@!$&'()*+,;=~-._"
# Delay from the end of a job to its first delivery. A Valkey whose machine fails may lose its last second of writes,
# and a job canceled in that second is then generated after all. A delivered end must not be lost: the delay is this
# second, one for the rounding of Redis's clock, and one in reserve (docs/durability.md).
DELIVERY_DELAY_S = 3


def check_url(url: str) -> str:
    """The URL in ASCII, if it is valid for a webhook: http or https, a host, and neither user nor fragment.

    The addresses of its host are checked separately, at submit and at every connection (`is_public`).

    Raises:
        ValueError: it is not valid.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is not a URL: {error}") from error
    if any(char <= " " or char == "\\" for char in url):
        raise ValueError("must be a URL without spaces and backslashes; write them as %XX")
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError("must be an http or https URL with a host")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("must hold neither user, password nor fragment; deliveries are signed, see the documentation")
    if url.isascii():
        return url
    try:
        netloc = parts.netloc.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"has a host that is no name: {error}") from error
    path, query = quote(parts.path, _AS_IT_IS), quote(parts.query, _AS_IT_IS)
    return check_url(urlunsplit((parts.scheme, netloc, path, query, "")))


def _none_if_empty(url: object) -> object:
    return None if url == "" else url  # as forms and scripts say that there is none


_Url = Annotated[str, StringConstraints(min_length=8, max_length=2_048), AfterValidator(check_url)]
OptionalWebhookUrl = Annotated[_Url | None, BeforeValidator(_none_if_empty)]


def is_public(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether deliveries may go to an address: a public one, or one in a network that the operator allows.

    Private, loopback, link-local (metadata services of most clouds) and other special addresses are not public, nor are
    IPv6 addresses that embed one of them.
    """
    if any(address in network for network in allowed):
        return True
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and address not in _AZURE and address not in _PROTOCOLS
    inner = _embedded(address)
    if inner is not None:
        return is_public(inner)
    return address in _GLOBAL_UNICAST and address.is_global


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def parse_address(text: str) -> Address:
    """Parse an address from the resolver, without the zone of a link-local one."""
    return ip_address(text.partition("%")[0])


def event_type(status: str) -> str:
    """The `type` of a delivery for a JobStatus: `job.succeeded`, `job.failed` or `job.canceled`."""
    return f"job.{status}"


def event_id(job_id: str, status: str) -> str:
    """The `webhook-id` of a job's end: the same for every try, also after a restore, so that receivers can dedupe."""
    return f"msg_{job_id}_{status}"


class Delivery(RecordModel):
    """One try to deliver the end of a job."""

    id: str = Field(description="The `webhook-id`: the same for every try of one event.")
    event: str = Field(description="job.succeeded, job.failed or job.canceled.")
    number: int = Field(description="From 1.")
    at: AwareDatetime
    delivered: bool = Field(description="Whether the target answered 2xx.")
    status: int | None = Field(None, description="The target's HTTP status; null when it gave none.")
    error: str | None = Field(None, description="Why it was not delivered, in words.")
    next_at: AwareDatetime | None = Field(None, description="When it is tried again; null: never.")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`. A name that is not `localhost` may lead anywhere."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
