"""Generate a file of specs, one on each line, into a directory of songs.

    python examples/batch.py examples/songs.jsonl songs/

Stopped or killed, the same command continues: the gateway knows the batch by its key, the directory what it has.
SERINETTE_URL names another gateway than that of this machine, SERINETTE_API_KEY a key.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from serinette import BatchOptions, Client, SerinetteError
from serinette.client import Fetched


def main(specs: Path, directory: Path) -> int:
    """0 when each line became a song."""
    key = hashlib.sha256(specs.read_bytes()).hexdigest()
    failed = 0
    with Client() as client:
        batch = client.batches.create(specs, BatchOptions(name=specs.stem), idempotency_key=key)
        for result in client.batches.results(batch.id, directory):  # each line as it ends, the batch between them
            if not isinstance(result, Fetched):
                counts = result.request_counts
                print(f"{counts.completed} of {counts.total}, {counts.failed} failed", file=sys.stderr)
            elif result.line.error:
                failed += 1
                print(f"line {result.line.line}: {result.line.error.message}", file=sys.stderr)
            else:
                print(*result.files, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
    except (SerinetteError, OSError) as error:
        sys.exit(str(error))
