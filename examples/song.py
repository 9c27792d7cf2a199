"""Submit a song, follow it, save it.

    python examples/song.py "slow waltz, C major" song.mp3

SERINETTE_URL names another gateway than that of this machine, SERINETTE_API_KEY a key.
"""

from __future__ import annotations

import sys
from pathlib import Path

from serinette import AudioFormat, Client, Job, JobStatus, SerinetteError


def main(prompt: str, path: Path) -> int:
    """0 once the song is saved; its format is the one that the file's name ends in."""
    with Client() as client:
        job = client.submit(prompt, duration_s=15, format=AudioFormat(path.suffix.removeprefix(".")))
        for state in client.watch(job.id):  # each time it changes, the ended job last
            print(line(state), file=sys.stderr)
            job = state
        if job.status is not JobStatus.SUCCEEDED:
            print(job.error.message if job.error else "it was canceled", file=sys.stderr)
            return 1
        client.download(job, path)
    return 0


def line(job: Job) -> str:
    """What somebody who waits wants to know."""
    if job.waiting_for:
        return f"{job.status}: {job.waiting_for}"
    if job.progress:
        return f"{job.status}: {job.progress.stage}, {job.progress.fraction:.0%}"
    return str(job.status)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        sys.exit(main(sys.argv[1], Path(sys.argv[2])))
    except (SerinetteError, ValueError) as error:
        sys.exit(str(error))
