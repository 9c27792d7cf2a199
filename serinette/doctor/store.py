"""The object store, as a process of ours would use it."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import httpx
from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from serinette.doctor.findings import Finding, bad, ok, warning
from serinette.errors import ConfigurationError, SerinetteError
from serinette.names import doctor_key
from serinette.settings import SharedSettings
from serinette.store import Store


class StoreTrouble(StrEnum):
    """Why the store cannot be used."""

    SETTINGS = "settings"
    CREDENTIALS = "credentials"
    BUCKET = "bucket"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """What the store did."""

    url: str
    endpoint: str | None
    step: str = ""  # what it failed at
    trouble: StoreTrouble | None = None
    detail: str = ""
    one_winner: bool = True  # of two that create one key
    same_bytes: bool = True
    public: str | None = None  # the public endpoint, where there is one
    public_error: str = ""


def look_at_store(settings: SharedSettings) -> StoreSeen:
    """Write an object, read it, refuse to write it twice, sign it, erase it."""
    step, key = "open", doctor_key(uuid.uuid4().hex)
    url, endpoint = settings.store_url, settings.store_endpoint
    try:
        store = Store.open(settings)
        step = "list"
        store.ping()
        step = "write"
        first = store.put_if_absent(key, b"a doctor's")
        try:
            step = "write again"
            second = store.put_if_absent(key, b"another's!")
            step = "read"
            same = store.get(key) == b"a doctor's"
            public_error = _public_error(store, key)
        finally:
            step = "erase" if step == "read" else step
            store.delete(key)
    except (SerinetteError, OSError) as error:
        detail = (str(error.__cause__ or error).splitlines() or [""])[0].strip()
        return StoreSeen(url, endpoint, step, trouble_of(error), detail[:600])
    return StoreSeen(
        url,
        endpoint,
        one_winner=first and not second,
        same_bytes=same,
        public=settings.store_public_endpoint,
        public_error=public_error,
    )


def _public_error(store: Store, key: str) -> str:
    """Why a presigned URL cannot be fetched from here; nothing when it can, or when there are none."""
    with suppress(SerinetteError):
        if (url := store.sign_get(key, 60)) is None:
            return ""
        try:
            answer = httpx.get(url, timeout=10)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        return "" if answer.status_code == httpx.codes.OK else f"status {answer.status_code}: {answer.text[:200]}"
    return "a URL could not be signed"


def trouble_of(error: BaseException) -> StoreTrouble:
    """The kind of a store's error."""
    cause = error.__cause__
    if isinstance(error, ConfigurationError):
        return StoreTrouble.SETTINGS
    # Listings are refused by a generic error. 169.254: no keys were given, so a metadata server was asked, in vain.
    refused = any(word in str(cause) for word in ("403 Forbidden", "401 Unauthorized", "169.254."))
    if refused or isinstance(cause, (PermissionDeniedError, UnauthenticatedError)):
        return StoreTrouble.CREDENTIALS
    missing = isinstance(cause, FileNotFoundError) or "NoSuchBucket" in str(cause)
    return StoreTrouble.BUCKET if missing else StoreTrouble.UNREACHABLE


# What it is, and what to do.
_REMEDIES = {
    StoreTrouble.SETTINGS: (
        "this is no place for songs",
        "correct SERINETTE_STORE_URL: file:///dir, s3://bucket/prefix, gs://... or az://... (chart: store.url)",
    ),
    StoreTrouble.CREDENTIALS: (
        "it refuses our credentials, or we have none",
        "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (chart: store.existingSecret), or a workload identity that "
        "may list, read, write and delete under the prefix; if they are right, compare the clocks",
    ),
    StoreTrouble.BUCKET: (
        "there is no such bucket",
        "make the bucket, or correct its name in SERINETTE_STORE_URL (chart: store.url)",
    ),
    StoreTrouble.UNREACHABLE: (
        "it does not answer",
        "correct SERINETTE_STORE_ENDPOINT (chart: store.endpoint), its scheme too; look for a firewall or "
        "NetworkPolicy between here and there",
    ),
}


def judge_store(seen: StoreSeen) -> list[Finding]:
    """All that can be said of the store."""
    where = seen.url + (f" at {seen.endpoint}" if seen.endpoint else "")
    if seen.trouble is not None:
        what, remedy = _REMEDIES[seen.trouble]
        return [bad("store", "writable", f"{where}: cannot {seen.step}: {what} ({seen.detail})", remedy)]
    findings = [ok("store", "writable", f"{where} lists, writes, reads and erases")]
    if not seen.same_bytes:
        findings.append(
            bad("store", "writable", f"{where} gave other bytes than were written", "find what lies between")
        )
    if not seen.one_winner:
        remedy = "use a store that honours `If-None-Match: *` (S3, GCS, Azure, SeaweedFS): a job's one end relies on it"
        findings.append(bad("store", "create once", "an object could be created twice", remedy))
    else:
        findings.append(ok("store", "create once", "of two that create one object, one is refused"))
    if seen.public and seen.public_error:
        remedy = "make SERINETTE_STORE_PUBLIC_ENDPOINT reachable, or leave it empty: the gateway then passes songs on"
        message = f"a presigned URL of {seen.public} cannot be fetched from here: {seen.public_error}"
        findings.append(warning("store", "public endpoint", message, remedy))
    elif seen.public:
        findings.append(ok("store", "public endpoint", f"a presigned URL of {seen.public} was fetched"))
    return findings
