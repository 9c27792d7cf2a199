"""The check that an upload is audio: it is decoded once, in a process without secrets and privileges.

That process is `python -I` with FILE, MAX_DURATION_S and CPU_S; it answers with one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

from serinette import media
from serinette.errors import InvalidAudio, TooLarge, Unavailable
from serinette.media import AudioInfo

# The interpreter, numpy and FFmpeg use 0.3 GB of it before the file is opened.
_ADDRESS_SPACE_BYTES = 2 * 1024**3
# An isolated interpreter ignores PYTHONPATH, by which our images find this package.
_OWN = str(Path(__file__).resolve().parents[1])
_PROGRAM = f"import sys; sys.path.insert(0, {_OWN!r}); from serinette.probe import main; main(*sys.argv[1:])"
# Behind the gateway that started it, which answers others meanwhile.
_NICE = 10
_MAX_ANSWER_BYTES = 64 * 1024


def prove_audio(
    path: Path, *, max_duration_s: float, max_size_bytes: int | None = None, timeout_s: float = 60
) -> AudioInfo:
    """Decode an untrusted file to its end. Blocks for up to `timeout_s`: call it from a thread.

    Raises:
        InvalidAudio: it is not audio, too long, or needs more memory or time than valid files do.
        TooLarge: it has more than `max_size_bytes`.
        Unavailable: the check itself could not be run.
    """
    if max_size_bytes is not None and (size_bytes := path.stat().st_size) > max_size_bytes:
        raise TooLarge(f"the file has {size_bytes} bytes; {max_size_bytes} are allowed")
    limits = [str(max_duration_s), str(round(timeout_s) + 1)]
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _PROGRAM, str(path.absolute()), *limits],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={},
        cwd="/",
        start_new_session=True,
    ) as process:
        watch = threading.Timer(timeout_s, process.kill)
        watch.start()
        try:
            answer = process.stdout.read(_MAX_ANSWER_BYTES) if process.stdout else b""
        finally:
            watch.cancel()
            process.kill()  # in case it wrote more than the limit and still runs
    return _parse_answer(answer.decode(errors="replace"), process.returncode)


def _parse_answer(answer: str, returncode: int) -> AudioInfo:
    if returncode < 0:
        raise InvalidAudio("the file takes more time or memory to decode than is allowed, or breaks the decoder")
    try:
        result = json.loads(answer.splitlines()[-1])
        if "refused" in result:
            raise InvalidAudio(str(result["refused"]))
        return AudioInfo.model_validate(result)
    except (ValueError, TypeError, IndexError) as error:
        error.add_note(answer)
        raise Unavailable("uploads cannot be checked at the moment; try again later") from error


def main(path: str, max_duration_s: str, cpu_s: str) -> None:
    """Decode one file under resource limits, and print its AudioInfo or the reason why it is refused."""
    probe = media.probe  # imported before the limits forbid it
    _confine(int(cpu_s))
    try:
        answer = probe(Path(path), float(max_duration_s)).model_dump_json()
    except InvalidAudio as error:
        answer = json.dumps({"refused": error.message})
    sys.stdout.write(f"{answer}\n")


def _confine(cpu_s: int) -> None:
    os.nice(_NICE)
    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 8,
        resource.RLIMIT_CORE: 0,
    }
    if sys.platform == "linux":  # macOS defines these two but refuses to set them
        limits |= {resource.RLIMIT_AS: _ADDRESS_SPACE_BYTES, resource.RLIMIT_NPROC: 0}
    for limit, value in limits.items():
        _, most = resource.getrlimit(limit)
        bound = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (bound, bound))
