"""Exit statuses, the same for every command."""

from __future__ import annotations

EXIT_FAILED = 1  # an error, or the song failed
EXIT_USAGE = 2  # Click's own
EXIT_UNREACHABLE = 3  # no server answers
EXIT_PARTLY = 4  # done, but not all is well: some songs of a batch failed, or a replay has other bits
EXIT_NO_CODE = 125  # a container ended without an exit code of its own
EXIT_INTERRUPTED = 130
