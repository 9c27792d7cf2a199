"""`python -m controller.containers.steps fetch|upload`: the steps around a container in its pod, without credentials.

fetch   reads SERINETTE_STEP, a list of {path, url}, and writes each below /inputs.
upload  waits for SIGTERM, which comes when the command beside it has ended, then PUTs the files below /outputs to the
        URLs of SERINETTE_STEP, {urls, manifest_url, max_bytes}, and last a manifest of these files.

File names never become keys or URLs: the n-th file goes to the n-th URL, and the manifest has its name.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx

from serinette.container import is_file_name

_CHUNK_BYTES = 1024 * 1024
_TIMEOUT = httpx.Timeout(60, connect=10)
_TRIES = 4
# Statuses that are not retried: the object is gone, or the URL has expired.
_FINAL = frozenset({400, 403, 404})
_MOST_LEFT_OUT = 20
GONE = 3  # exit status: an input no longer exists

Answer = TypeVar("Answer")


def fetch(inputs: Sequence[Mapping[str, Any]], root: Path) -> None:
    """Write every input below `root`.

    Raises:
        httpx.HTTPError: one could not be fetched.
        ValueError: one has a name that is not allowed.
    """
    for each in inputs:
        if not is_file_name(each["path"]):
            raise ValueError(f"{each['path']!r} may not be the name of an input")
        path = root / each["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        _retried(partial(_download, each["url"], path))


def _download(url: str, path: Path) -> None:
    with httpx.stream("GET", url, timeout=_TIMEOUT) as answer:
        answer.raise_for_status()
        with path.open("wb") as file:
            for chunk in answer.iter_bytes(_CHUNK_BYTES):
                file.write(chunk)


def upload(where: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Upload the files below `root`, and the manifest last; returns the manifest.

    Raises:
        httpx.HTTPError: an upload failed.
    """
    sizes, left_out = survey(root, len(where["urls"]), where["max_bytes"])
    outputs = []
    for index, ((name, size_bytes), url) in enumerate(zip(sizes.items(), where["urls"], strict=False)):
        sha256 = _retried(partial(_put_file, url, root / name, size_bytes))
        outputs.append({"name": name, "index": index, "size_bytes": size_bytes, "sha256": sha256})
    manifest = {"outputs": outputs, "left_out": left_out}
    _retried(lambda: httpx.put(where["manifest_url"], json=manifest, timeout=_TIMEOUT).raise_for_status())
    return manifest


def survey(root: Path, most: int, max_bytes: int) -> tuple[dict[str, int], list[str]]:
    """Sizes of the files to upload, and in words those left out. Links are not followed: they lead to files of this
    step.
    """
    sizes: dict[str, int] = {}
    left_out: list[str] = []
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        shown, status = ascii(name)[:200], path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            left_out.append(f"{shown} is no plain file")
        elif not is_file_name(name):
            left_out.append(f"{shown} may not be called so: letters, digits, . _ and -, not beginning with a dot")
        elif len(sizes) == most:
            left_out.append(f"{shown} is one file too many: {most} are kept; pack them into an archive")
        elif sum(sizes.values()) + status.st_size > max_bytes:
            left_out.append(f"{shown} is too much: {max_bytes} bytes are kept in all")
        else:
            sizes[name] = status.st_size
    more = len(left_out) - _MOST_LEFT_OUT
    return sizes, left_out[:_MOST_LEFT_OUT] + ([f"and {more} more"] if more > 0 else [])


def _put_file(url: str, path: Path, size_bytes: int) -> str:
    digest = hashlib.sha256()

    def chunks() -> Iterator[bytes]:
        left = size_bytes  # as the Content-Length below, even if the file has grown since
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as opened:
            while left and (chunk := opened.read(min(_CHUNK_BYTES, left))):
                left -= len(chunk)
                digest.update(chunk)
                yield chunk

    headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
    httpx.put(url, content=chunks(), headers=headers, timeout=_TIMEOUT).raise_for_status()
    return digest.hexdigest()


def _retried(act: Callable[[], Answer]) -> Answer:
    for number in range(_TRIES - 1):
        try:
            return act()
        except httpx.HTTPStatusError as error:
            if error.response.status_code in _FINAL:
                raise
        except httpx.TransportError:
            pass
        time.sleep(2**number)
    return act()


def main() -> int:
    """Exit status: 0, or 1 when something could not be moved, or 3 when an input is gone."""
    step, given = sys.argv[1], json.loads(os.environ["SERINETTE_STEP"])
    root = os.environ.get("SERINETTE_STEP_ROOT")
    try:
        if step == "fetch":
            fetch(given, Path(root or "/inputs"))
            return 0
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # Never called. The pod's startup probe checks for this handler: from here on no SIGTERM is missed.
        signal.signal(signal.SIGTERM, lambda *_: None)
        sys.stderr.write("waiting for the command to end\n")
        signal.sigwait({signal.SIGTERM})
        manifest = upload(given, Path(root or "/outputs"))
        sys.stderr.write(f"{len(manifest['outputs'])} files put, {len(manifest['left_out'])} left out\n")
    except httpx.HTTPStatusError as error:  # its text is not logged: it contains the presigned URL
        sys.stderr.write(f"{step}: the store answered {error.response.status_code}\n")
        return GONE if error.response.status_code in _FINAL and step == "fetch" else 1
    except (httpx.HTTPError, OSError, ValueError) as error:
        sys.stderr.write(f"{step}: {type(error).__name__}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
