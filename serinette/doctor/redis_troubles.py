"""Why Redis could not be asked, from the words that redis-py and the server find for it; and what to do."""

from __future__ import annotations

from enum import StrEnum

from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError


class Trouble(StrEnum):
    """Why Redis could not be asked."""

    NAME = "name"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    NEEDS_TLS = "needs_tls"
    NO_TLS = "no_tls"
    CERTIFICATE = "certificate"
    NO_PASSWORD = "no_password"  # noqa: S105  # a kind of trouble
    WRONG_PASSWORD = "wrong_password"  # noqa: S105  # a kind of trouble
    DATABASE = "database"
    PERMISSION = "permission"
    OTHER = "other"


def trouble_of(error: BaseException) -> Trouble:
    """The kind of an error, by its type and, where there is none of its own, by redis-py's and the server's words."""
    text = str(error).lower()
    words = (
        (Trouble.DATABASE, ("db index is out of range", "invalid db index")),
        (Trouble.CERTIFICATE, ("certificate_verify_failed", "certificate verify failed", "hostname mismatch")),
        (Trouble.NO_TLS, ("wrong_version_number", "wrong version number", "record layer failure", "unknown protocol")),
        (Trouble.NO_PASSWORD, ("authentication required", "noauth", "hello must be called with")),
        (
            Trouble.NAME,
            ("name or service not known", "name resolution", "nodename nor servname", "no address associated"),
        ),
        (Trouble.REFUSED, ("refused", "no such file or directory")),
    )
    for trouble, phrases in words:
        if any(phrase in text for phrase in phrases):
            return trouble
    kinds: tuple[tuple[type[BaseException], Trouble], ...] = (
        (AuthenticationError, Trouble.WRONG_PASSWORD),
        (NoPermissionError, Trouble.PERMISSION),
        (RedisTimeoutError, Trouble.TIMEOUT),
    )
    if "wrongpass" in text or "without any password configured" in text:
        return Trouble.WRONG_PASSWORD
    return next((trouble for kind, trouble in kinds if isinstance(error, kind)), Trouble.OTHER)


# What it is, and what to do.
REMEDIES = {
    Trouble.NAME: (
        "its name is not known here",
        "inside a cluster give SERVICE.NAMESPACE.svc; from outside, `kubectl port-forward` and 127.0.0.1, or run the "
        "doctor in a gateway's pod (`kubectl exec deploy/... -- python -m serinette.cli doctor`)",
    ),
    Trouble.REFUSED: (
        "nothing listens there",
        "start Valkey, or correct host and port of SERINETTE_REDIS_URL (chart: redis.host, redis.port)",
    ),
    Trouble.TIMEOUT: (
        "it does not answer in time",
        "look for a firewall or a NetworkPolicy between here and there, or a server that hangs",
    ),
    Trouble.NEEDS_TLS: ("the server speaks TLS and we do not", "use rediss:// (chart: redis.tls.enabled=true)"),
    Trouble.NO_TLS: ("we speak TLS and the server does not", "use redis:// (chart: redis.tls.enabled=false)"),
    Trouble.CERTIFICATE: (
        "its certificate cannot be trusted",
        "name its CA: ?ssl_ca_certs=FILE in the URL (chart: redis.tls.caSecret), and a host name that it is made for",
    ),
    Trouble.NO_PASSWORD: (
        "it asks for a password and was given none",
        "set SERINETTE_REDIS_PASSWORD (chart: redis.auth.existingSecret)",
    ),
    Trouble.WRONG_PASSWORD: (
        "it refuses this user or password",
        "correct SERINETTE_REDIS_USERNAME and SERINETTE_REDIS_PASSWORD (chart: the Secret redis.auth.existingSecret "
        "and its passwordKey, usernameKey); pods take a changed Secret up when they restart",
    ),
    Trouble.DATABASE: (
        "it has no such database",
        "take one of those it has, 0 always; correct the end of SERINETTE_REDIS_URL (chart: redis.db)",
    ),
    Trouble.PERMISSION: (
        "this user may not do what we need",
        "give the user `~PREFIX:* &PREFIX:* +@all -@dangerous +info`",
    ),
    Trouble.OTHER: ("it cannot be asked", "look at its log"),
}
