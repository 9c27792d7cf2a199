"""Webhooks: which targets a job may name, what is told of its end, and how each try is logged.

The wire is that of Standard Webhooks (webhook-id, webhook-timestamp, webhook-signature); controller/ delivers.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Azure answers its machines' own questions here, on an address that is public by every registry.
_AZURE = IPv4Network("168.63.129.16/32")
# IETF's own, Oracle's metadata among it: what `is_global` says of it differs from one Python to another.
_PROTOCOLS = IPv4Network("192.0.0.0/24")
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


# How long after its writing an end is told. A Valkey whose machine died may have lost the last second of what it wrote;
# then a job that was canceled in it is sung after all. What has been told must not be among the lost: the second, one
# for Redis's clock being read in whole ones, and one to spare (docs/durability.md).
DELIVERY_DELAY_S = 3


def check_url(url: str) -> str:
    """The URL, if a webhook may have it: http or https, a host, and neither user nor fragment.

    Where its host leads is another question, asked at submit and again at every connection (`is_public`).

    Raises:
        ValueError: it may not.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"is not a URL: {error}") from error
    if not url.isascii() or any(char <= " " or char == "\\" for char in url):
        raise ValueError("must be a URL in ASCII, without spaces and backslashes; write other characters as %XX")
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError("must be an http or https URL with a host")
    if "@" in parts.netloc or parts.fragment:
        raise ValueError("must hold neither user, password nor fragment; deliveries are signed, see the documentation")
    return url


WebhookUrl = Annotated[str, StringConstraints(min_length=8, max_length=2_048), AfterValidator(check_url)]


def is_public(address: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether deliveries may go to an address: one of the open internet, or of a network that the operator allows.

    So neither private, loopback, link-local (most clouds' metadata) nor any other special one, and no IPv6 address
    that stands for such an IPv4 one.
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
    """An address as the resolver gives it, the zone of a link-local one dropped."""
    return ip_address(text.partition("%")[0])


def event_type(status: str) -> str:
    """What a delivery's `type` says of a JobStatus: `job.succeeded`, `job.failed` or `job.canceled`."""
    return f"job.{status}"


def event_id(job_id: str, status: str) -> str:
    """The `webhook-id` of one job's one end: the same for every try, also after a restore, so receivers can dedupe."""
    return f"msg_{job_id}_{status}"


class Delivery(BaseModel):
    """One try to deliver the end of a job."""

    model_config = ConfigDict(frozen=True, extra="ignore")

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
