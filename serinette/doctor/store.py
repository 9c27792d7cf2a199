"""The object store, as a process of ours would use it."""

from __future__ import annotations

import uuid

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

from serinette.doctor.findings import Finding, bad, first_of
from serinette.errors import ConfigurationError, SerinetteError
from serinette.names import doctor_key
from serinette.settings import SharedSettings
from serinette.store import Store

_WRITTEN = b"a doctor's"


def check_store(settings: SharedSettings) -> list[Finding]:
    """Write an object, refuse to write it twice, read it, erase it."""
    where = settings.store_url + (f" at {settings.store_endpoint}" if settings.store_endpoint else "")
    step, key = "open", doctor_key(uuid.uuid4().hex)
    try:
        store = Store.open(settings)
        if full := store.full_disk():
            remedy = "free space there; SERINETTE_RETENTION_S is how long songs are kept"
            return [bad("store", "writable", f"{where}: {full.partition(';')[0]}", remedy)]
        step = "list"
        store.ping()
        step = "write"
        first = store.put_if_absent(key, _WRITTEN)
        try:
            step = "write again"
            second = store.put_if_absent(key, b"another's!")
            step = "read"
            same = store.get(key) == _WRITTEN
        finally:
            step = "erase" if step == "read" else step
            store.delete(key)
    except (SerinetteError, OSError) as error:
        what, remedy = _trouble(error)
        detail = (str(error.__cause__ or error).splitlines() or [""])[0].strip()[:600]
        return [bad("store", "writable", f"{where}: cannot {step}: {what} ({detail})", remedy)]
    other, between = f"{where} gave other bytes than were written", "find what lies between: a proxy, a cache"
    remedy = "use a store that honours `If-None-Match: *` (S3, GCS, Azure, SeaweedFS): a job's one end relies on it"
    twice = (not first or second, bad, "an object could be created twice", remedy)
    well = f"{where} lists, writes, reads and erases"
    return [
        first_of("store", "writable", (not same, bad, other, between), otherwise=well),
        first_of("store", "create once", twice, otherwise="of two that create one object, one is refused"),
    ]


def _trouble(error: BaseException) -> tuple[str, str]:
    """Why the store cannot be used, and what to do."""
    cause = error.__cause__
    if isinstance(error, ConfigurationError):
        remedy = "correct SERINETTE_STORE_URL: file:///dir, s3://bucket/prefix, gs://... or az://... (chart: store.url)"
        return "this is no place for songs", remedy
    # Listings are refused by a generic error. 169.254: no keys were given, so a metadata server was asked, in vain.
    refused = any(word in str(cause) for word in ("403 Forbidden", "401 Unauthorized", "169.254."))
    if refused or isinstance(cause, (PermissionDeniedError, UnauthenticatedError)):
        remedy = (
            "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (chart: store.existingSecret), or a workload identity "
        )
        remedy += "that may list, read, write and delete under the prefix; if they are right, compare the clocks"
        return "it refuses our credentials, or we have none", remedy
    if isinstance(cause, FileNotFoundError) or "NoSuchBucket" in str(cause):
        remedy = "make the bucket, or correct its name in SERINETTE_STORE_URL (chart: store.url)"
        return "there is no such bucket", remedy
    remedy = "correct SERINETTE_STORE_ENDPOINT (chart: store.endpoint), its scheme too; look for a firewall or "
    return "it does not answer", f"{remedy}NetworkPolicy between here and there"
