"""Webhook settings, and the check of target addresses at submit and at every connection."""

from __future__ import annotations

import base64
import binascii
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooSlow
from ipaddress import IPv4Network, IPv6Network
from threading import RLock
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, model_validator

from serinette.errors import InvalidSpec, Unavailable
from serinette.settings import SharedSettings
from serinette.webhook import Address, Network, is_public, parse_address


class WebhookSettings(SharedSettings):
    """Webhook settings shared by gateway and controller."""

    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs webhooks: `whsec_` and base64 of 24 to 64 bytes. Several, separated by spaces, all sign, "
        "for rotation. None: no webhooks, except for tenants in `webhook_secrets`.",
    )
    webhook_secrets: Mapping[str, SecretStr] = Field(
        {}, description="Secrets of tenants that have their own, by tenant (JSON object in the environment)."
    )
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description='Networks that webhooks may go to although they are not public, e.g. `["10.20.0.0/16"]`. Any '
        "client that may submit can then make this server POST there.",
    )

    @model_validator(mode="after")
    def _secrets_are_valid(self) -> Self:
        configured = dict(self.webhook_secrets)
        if self.webhook_secret is not None:
            configured["webhook_secret"] = self.webhook_secret
        for name, secrets in configured.items():
            if not secrets.get_secret_value().split() or not all(map(_can_sign, secrets.get_secret_value().split())):
                raise ValueError(
                    f"{name}: must be whsec_ and base64 of 24 to 64 bytes, e.g. from `openssl rand -base64 32`"
                )
        return self

    def signs_for(self, tenant: str | None) -> list[SecretStr]:
        """The secrets that sign a tenant's webhooks; empty if it has no webhooks."""
        secrets = self.webhook_secrets.get(tenant or "", self.webhook_secret)
        return [SecretStr(secret) for secret in secrets.get_secret_value().split()] if secrets else []


def _can_sign(secret: str) -> bool:
    try:
        return 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
    except binascii.Error:
        return False


# Look-ups that go on at once, each a thread that a hanging resolver may keep; of one tenant at most this many.
_LOOKUPS = 32
_LOOKUPS_OF_TENANT = 4
# Longest that a caller waits for one, which goes on and serves the next caller.
_LOOKUP_TIMEOUT_S = 5.0
# How long an answer is used again. A connection goes to the very addresses that were checked, also then.
_REMEMBERED_S = 30.0
_REMEMBERED = 1_024

Lookup = Future[Sequence[Any]]


class NotLookedUp(OSError):
    """The resolver does not answer at the moment, or this tenant waits for it too often already."""


class Targets:
    """Checks hosts of webhooks. `allowed`: networks that are not public and that the operator allows. `look_up` has the
    interface of `socket.getaddrinfo`. A host that is looked up already is not looked up a second time meanwhile.
    """

    def __init__(
        self,
        allowed: Sequence[Network] = (),
        look_up: Callable[..., Sequence[Any]] = socket.getaddrinfo,
        remembered_s: float = _REMEMBERED_S,
    ) -> None:
        self._allowed = tuple(allowed)
        self._look_up = look_up
        self._remembered_s = remembered_s
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        self._lock = RLock()
        self._running: dict[tuple[str, int], Lookup] = {}
        self._of_tenant: Counter[str] = Counter()
        self._known: dict[tuple[str, int], tuple[float, Lookup]] = {}

    def check(self, url: str, tenant: str = "") -> None:
        """Check at submit that all addresses of a webhook's host are allowed.

        Raises:
            InvalidSpec: one is not, or the host has no address.
            Unavailable: the resolver does not answer.
        """
        parts = urlsplit(url)
        host = parts.hostname or ""
        try:
            self.addresses(host, parts.port or (443 if parts.scheme == "https" else 80), tenant)
        except PermissionError as error:
            raise InvalidSpec(f"webhook: {error}", field="webhook") from error
        except NotLookedUp as error:
            raise Unavailable(f"webhook: {error}; try again", field="webhook") from error
        except OSError as error:
            raise InvalidSpec(
                f"webhook: there is no host {host}; use a host that can be reached", field="webhook"
            ) from error

    def addresses(self, host: str, port: int, tenant: str = "") -> list[Address]:
        """The addresses of a host, all of which are allowed.

        Raises:
            PermissionError: one of them is not allowed.
            NotLookedUp: it cannot be said at the moment.
            OSError: there is no such host.
        """
        lookup = self._started((host, port), tenant)
        try:
            found = [parse_address(str(entry[4][0])) for entry in lookup.result(_LOOKUP_TIMEOUT_S)]
        except UnicodeError as error:  # a label that is too long, or empty
            raise OSError(f"{host} is not a name that can be looked up") from error
        except TooSlow as error:
            raise NotLookedUp("the host could not be looked up in time") from error
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise NotLookedUp("the host cannot be looked up at the moment") from error
            raise
        if not all(is_public(address, self._allowed) for address in found):
            # The message does not contain the address, which would reveal the internal network.
            raise PermissionError("the host must lead to public addresses only: no private, local or metadata ones")
        return list(dict.fromkeys(found))

    def _started(self, place: tuple[str, int], tenant: str) -> Lookup:
        """A look-up of this place that goes on or was done just now, or a new one."""
        with self._lock:
            until_s, known = self._known.get(place, (0.0, None))
            if known is not None and time.monotonic() < until_s:
                return known
            if (running := self._running.get(place)) is not None:
                return running
            if self._of_tenant[tenant] >= _LOOKUPS_OF_TENANT or len(self._running) >= _LOOKUPS:
                raise NotLookedUp("too many hosts are being looked up already")
            self._of_tenant[tenant] += 1
            lookup = self._running[place] = self._threads.submit(self._look_up, *place, type=socket.SOCK_STREAM)
        lookup.add_done_callback(lambda done: self._ended(place, tenant, done))
        return lookup

    def _ended(self, place: tuple[str, int], tenant: str, lookup: Lookup) -> None:
        with self._lock:
            self._running.pop(place, None)
            self._of_tenant -= Counter([tenant])
            if lookup.exception() is None:
                while len(self._known) >= _REMEMBERED:
                    del self._known[next(iter(self._known))]
                self._known[place] = time.monotonic() + self._remembered_s, lookup
