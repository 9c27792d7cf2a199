"""Checkpoints and planners of Hugging Face's hub, in its cache. Its client begins a file anew that was interrupted, so
large ones are brought by spans before it is asked.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, filter_repo_objects, hf_raise_for_status, http_stream_backoff

from gpu_worker.engine.checkpoints.downloading import SPAN_BYTES, digest, fetch_spans, forget_spans
from serinette.checkpoints import CheckpointFiles, note_files
from serinette.errors import ConfigurationError

log = logging.getLogger(__name__)

# The narrower first: some are raised again as others' causes.
_REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "the hub gives it only to those who accepted its terms; accept them on its page and set HF_TOKEN"),
    (RevisionNotFoundError, "the hub has no such revision of it; name a branch, tag or commit of it after @"),
    (RepositoryNotFoundError, "the hub has no such repository, or shows it to some alone; check its name and HF_TOKEN"),
    (
        RemoteEntryNotFoundError,
        "it has no model_index.json, so it is not in diffusers' layout; ACE-Step's own is made into that by "
        "`serinette convert`, once `hf download` has brought it",
    ),
)
_BROKEN = "the hub answers with an error; try again later"
_FORBIDDEN = "the hub does not give it to this HF_TOKEN, or to none; set one that may read it"
_NO_HUB = "the hub does not give it, and it is not in the local cache whole; check the network"
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_NO_SPACE = "the disk is full; free space in the hub's cache (HF_HOME), or give it a larger disk"

_FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors")
# The same weights in other types, beside those that are loaded.
_VARIANTS = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*", "*.fp32.*", "*.non_ema.*", "*.ema.*")


class HubRefusal(Exception):
    """Why the hub's checkpoint cannot be had, and what to do."""


class _NoSpans(OSError):
    """A mirror gives files whole alone."""


def fetch_pipeline(
    model: str, revision: str | None, checkpoints: Path, name: str, check: Callable[[Path], object]
) -> Path:
    """The directory of the pipeline `model` in the hub's cache; `check` gets one with its model_index.json alone.

    `name`: under which its files are noted below `checkpoints`. Raises HubRefusal, or whatever `check` raises.
    """
    try:
        index = Path(hf_hub_download(model, "model_index.json", revision=revision))
        check(index.parent)
        return _fetch(model, revision, pipeline_patterns(json.loads(index.read_text())), checkpoints, name)
    except ConfigurationError:
        raise
    except Exception as error:  # of the network, the disk or the hub: its client raises those of several packages
        raise HubRefusal(_explained(error)) from error


def fetch_planner(model: str, revision: str | None, checkpoints: Path, name: str) -> Path:
    """The directory of the planner `model` in the hub's cache; else as `fetch_pipeline`."""
    try:
        return _fetch(model, revision, _FILES, checkpoints, name)
    except Exception as error:  # as above
        raise HubRefusal(_explained(error)) from error


def pipeline_patterns(index: dict[str, Any]) -> tuple[str, ...]:
    """Names of the files that a pipeline is loaded from, by its model_index.json, whose lists are its parts."""
    parts = [part for part, kind in index.items() if isinstance(kind, list) and any(kind)]
    return ("model_index.json", *(f"{part}/{pattern}" for part in parts for pattern in _FILES))


def _fetch(model: str, revision: str | None, patterns: Sequence[str], checkpoints: Path, name: str) -> Path:
    wanted: dict[str, Any] = {"allow_patterns": list(patterns), "ignore_patterns": list(_VARIANTS)}
    storage = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model")
    try:
        api = HfApi()
        commit = str(api.repo_info(model, revision=revision).sha)
        tree = list(api.list_repo_tree(model, recursive=True, revision=commit))
    except Exception as error:  # it may be in the cache; else its client says below what is wrong
        log.info("the hub's list of %s cannot be had: %s", model, error)
        return Path(snapshot_download(model, revision=revision, **wanted))
    listed = [entry for entry in tree if isinstance(entry, RepoFile)]
    files = list(filter_repo_objects(listed, key=lambda entry: entry.path, **wanted))
    blobs, incoming = storage / "blobs", storage / ".incoming"
    sizes = {entry.lfs.sha256 if entry.lfs else entry.blob_id: entry.size for entry in files}
    note_files(checkpoints, CheckpointFiles(model=name, directory=blobs, incoming=incoming, sizes_bytes=sizes))
    large = {
        entry.lfs.sha256: entry
        for entry in files
        if entry.lfs and entry.size > SPAN_BYTES and not (blobs / entry.lfs.sha256).exists()
    }
    if large:
        incoming.mkdir(parents=True, exist_ok=True)
        with (storage / ".incoming.lock").open("w") as lock, suppress(_NoSpans):  # of several workers one fetches
            fcntl.flock(lock, fcntl.LOCK_EX)
            _fetch_large(model, commit, large, incoming, blobs)
    return Path(snapshot_download(model, revision=revision, **wanted))


def _fetch_large(model: str, commit: str, files: dict[str, RepoFile], incoming: Path, blobs: Path) -> None:
    """Bring files, by their SHA-256, to where the hub's client looks for them before it fetches."""
    files = {sha256: file for sha256, file in files.items() if not (blobs / sha256).exists()}

    def read(sha256: str, path: Path, span: tuple[int, int]) -> None:
        url = hf_hub_url(model, files[sha256].path, revision=commit)
        for pause_s in (1, 2, 4, 8, None):
            try:
                _read_span(url, path, *span)
            except OSError:
                raise
            except Exception:  # of the network or a hub that is busy
                if pause_s is None:
                    raise
                time.sleep(pause_s)
            else:
                return

    resumed = fetch_spans(incoming, {sha256: file.size for sha256, file in files.items()}, read)
    for sha256 in files:
        path = incoming / sha256
        if resumed and digest(path) != sha256:
            path.unlink()
            forget_spans(incoming)
            raise OSError(f"{files[sha256].path} came in two parts that do not fit; it is fetched again")
        blobs.mkdir(exist_ok=True)
        path.rename(blobs / sha256)
    forget_spans(incoming)


def _read_span(url: str, path: Path, start: int, end: int) -> None:
    """Write the bytes of a file from `start` to before `end` to their place. Raises OSError: they are not to be had."""
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # Its own tries know nothing of a stream that breaks off.
    once: dict[str, Any] = {"retry_on_exceptions": (), "retry_on_status_codes": ()}
    with http_stream_backoff("GET", url, headers=headers, timeout=timeout_s, **once) as answer:
        if answer.status_code == HTTPStatus.TOO_MANY_REQUESTS or answer.is_server_error:
            answer.raise_for_status()
        hf_raise_for_status(answer)
        if answer.status_code != HTTPStatus.PARTIAL_CONTENT:
            raise _NoSpans(f"{url} answers {answer.status_code} for a part of a file")
        given = answer.headers.get("Content-Range", "")
        if not given.startswith(f"bytes {start}-{end - 1}/"):
            raise OSError(f"{url} gave {given or 'some bytes'} for {start}-{end - 1}")
        with path.open("r+b") as file:
            place = file.seek(start)
            for chunk in answer.iter_bytes():
                place += len(chunk)
                file.write(chunk if place <= end else b"")  # what lies behind is another span's
        if place != end:
            raise OSError(f"{url} gave {place - start} bytes for {end - start}")


def _explained(error: Exception) -> str:
    """What the error, or its cause, means for the operator of this model, and what to do."""
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    statuses = {link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)}
    if any(getattr(link, "errno", None) in _FULL_DISK for link in chain):
        said = _NO_SPACE
    elif known := next((words for kind, words in _REFUSALS for link in chain if isinstance(link, kind)), None):
        said = known
    elif statuses & {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        said = _FORBIDDEN
    else:
        said = _BROKEN if statuses else _NO_HUB
    first_line = str(error).strip().partition("\n")[0]
    return f"{said} ({first_line[:300]})"
