"""Generate the client that waits from the one that awaits, or check that it is current.

python scripts/sync_client.py            writes serinette/client/sync.py and songs.py
python scripts/sync_client.py --check    compares with it
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOM = Path(__file__).parent.parent / "serinette" / "client"
GENERATED = {"asynchronous.py": "sync.py", "asynchronous_songs.py": "songs.py"}
HEADING = '"""What waits: generated from {written} by `make client`, so change that one."""'

# Beside what unasync knows: async and await go, AsyncIterator becomes Iterator, __aenter__ becomes __enter__.
NAMES = {
    "AsyncClient": "Client",
    "AsyncBatches": "Batches",
    "AsyncContainers": "Containers",
    "AsyncExitStack": "ExitStack",
    "AsyncSong": "Song",
    "asynchronous": "sync",
    "enter_async_context": "enter_context",
    "generate_async": "generate",
    "AsyncBaseTransport": "BaseTransport",
    "aclose": "close",
    "aiter_bytes": "iter_bytes",
    "aiter_lines": "iter_lines",
    "anyio": "time",  # of whose names only `sleep` is used
    "aread": "read",
    "async_chunks": "chunks",
    "async_created": "created",
}


def main() -> int:
    """0 when all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [name for name in GENERATED if not _current(name, check=check)]
    for name in stale:
        print(f"{GENERATED[name]} is not what {name} makes: run `make client` and commit it", file=sys.stderr)
    return 1 if stale else 0


def _current(written: str, *, check: bool) -> bool:
    code, path = generated(written), ROOM / GENERATED[written]
    if check:
        return path.exists() and path.read_text() == code
    path.write_text(code)
    return True


def generated(written: str) -> str:
    """The code of the sync client, in this project's style."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "async", written)
        source.parent.mkdir()
        _, _, rest = (ROOM / written).read_text().partition("\n")
        source.write_text(f"{HEADING.format(written=written)}\n{rest}")
        rule = unasync.Rule("/async/", "/sync/", additional_replacements=NAMES)
        unasync.unasync_files([str(source)], [rule])
        code = Path(directory, "sync", written).read_text()
    # Order of imports; `yield from` in place of a loop.
    code = _ruff(code, "check", "--fix-only", "--unsafe-fixes", "--quiet", "--select", "I,UP028")
    return _ruff(code, "format", "--quiet")


def _ruff(code: str, *command: str) -> str:
    command = (sys.executable, "-m", "ruff", *command, "--stdin-filename", str(ROOM / "sync.py"), "-")
    return subprocess.run(command, input=code, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
