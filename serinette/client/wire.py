"""Between calls and HTTP: requests made, answers and failures read. Nothing is sent here."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterable, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from serinette.client.calls import Call
from serinette.client.retries import TransientError, retry_after_s
from serinette.errors import ConfigurationError, InvalidBatch, Limited, SerinetteError, Unavailable, of_code
from serinette.job import ENDED
from serinette.webhook import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_URL = "http://127.0.0.1:8019"

# After these there may be more of a container's log; behind the last there is all of it.
LOG_EVENTS = frozenset({"status", "log"}) | ENDED

T = TypeVar("T")
_KEY = re.compile(r"[\x21-\x7e]+")

# Of a gateway, or of a proxy before it: nothing was accepted. 502 and 504 leave that open.
_REFUSED = {429, 503}
_LOST = {502, 504}


def address(url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """The gateway and the key to call it with: as given, else those of SERINETTE_URL and SERINETTE_API_KEY."""
    if url is None:
        url = os.environ.get("SERINETTE_URL") or DEFAULT_URL
    if api_key is None:
        api_key = os.environ.get("SERINETTE_API_KEY", "")
    return url.strip().rstrip("/"), api_key.strip() or None  # keys out of files end with a line break


def arguments(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """What httpx.Client and httpx.AsyncClient are made with.

    Raises:
        ConfigurationError: `url` or `api_key` is not one.
    """
    if api_key is not None and not _KEY.fullmatch(api_key):
        raise ConfigurationError("the API key has characters that no key has: give it alone, as it was issued")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{url!r} is no URL: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigurationError(f"{url!r} is no URL of a gateway: it looks like {DEFAULT_URL}")
    return {
        "base_url": url,
        "headers": {} if api_key is None else {"Authorization": f"Bearer {api_key}"},
        "timeout": timeout_s,
        # A proxy from the environment is for the world outside, not for this machine.
        "trust_env": not is_loopback(parsed.host),
    }


def request(
    http: httpx.Client | httpx.AsyncClient,
    call: Call[Any],
    content: Iterable[bytes] | AsyncIterable[bytes] | None = None,
) -> httpx.Request:
    """The request of a call; `content` is a body that is not JSON."""
    usual = http.timeout
    read_s = None if usual.read is None else usual.read + call.hold_s
    return http.build_request(
        call.method,
        call.path,
        params=dict(call.query) or None,
        json=call.body,
        content=content,
        headers=dict(call.headers),
        timeout=httpx.Timeout(connect=usual.connect, read=read_s, write=usual.write, pool=usual.pool),
    )


def read(call: Call[T], raw: bytes, url: str) -> T:
    """What the body of an answer says.

    Raises:
        SerinetteError: it is nothing that a gateway answers.
    """
    try:
        return call.read(raw)
    except (ValueError, KeyError, TypeError) as error:
        raise SerinetteError(f"{url}{call.path} answered something else than expected: is that a Serinette?") from error


def failure(response: httpx.Response) -> Exception:
    """What an answer that is no success means, its body being read: a TransientError if it may pass."""
    error = _error(response)
    asked_s = retry_after_s(response.headers.get("Retry-After"))
    if isinstance(error, Limited):
        error.retry_after_s = asked_s
    if response.status_code in _REFUSED | _LOST:
        return TransientError(error, asked_s=asked_s, perhaps_done=response.status_code in _LOST)
    return error


@contextmanager
def network_errors(url: str) -> Iterator[None]:
    """Failures of the network in our own words: a TransientError, or an error where trying again is of no use."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise TransientError(_unreachable(url, error)) from error
    except httpx.TransportError as error:
        raise TransientError(_unreachable(url, error), perhaps_done=True) from error
    except httpx.RequestError as error:
        raise SerinetteError(f"{url} answered what cannot be read: {_reason(error)}") from error


def events_interrupted(job_id: str) -> TransientError:
    """A stream of events that closed before the job's end, as when a gateway leaves."""
    return TransientError(Unavailable(f"the events of job {job_id} broke off; go on behind the last one"))


def _unreachable(url: str, error: httpx.TransportError) -> Unavailable:
    return Unavailable(
        f"no Serinette answers at {url} ({_reason(error)}): start one with `serinette up`, or name another, "
        "in Python with Client(url), on the command line with --server, in both with SERINETTE_URL"
    )


def _reason(error: httpx.RequestError) -> str:
    return str(error) or type(error).__name__


def _error(response: httpx.Response) -> SerinetteError:
    """The error that a problem+json answer names; for any other answer, by its status code."""
    try:
        problem = response.json()
        if not isinstance(problem["detail"], str):
            raise TypeError("the detail is no text")
        error = of_code(problem["code"], problem["detail"])
        error.field = problem.get("field")
        if isinstance(error, InvalidBatch):
            error.lines = tuple(
                (each["line"], each.get("field"), each["message"]) for each in problem.get("errors", ())
            )
    except (ValueError, KeyError, TypeError, AttributeError):
        kind = Unavailable if response.status_code in _REFUSED | _LOST else SerinetteError
        error = kind(f"{response.request.url} answered {response.status_code} {response.reason_phrase}")
    return error
