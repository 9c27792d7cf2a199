"""`python -m benchmarks [name...]`: measure, write raw results, and put their figures into docs/benchmarks.md."""

from __future__ import annotations

import sys

from benchmarks import demo, forgetting, gateway_import, gateway_load, page, songs
from benchmarks.record import write

BENCHMARKS = {
    "gateway-import": gateway_import.measure,
    "gateway-load": gateway_load.measure,
    "songs": songs.measure,
    "demo": demo.measure,
}
# Only by name: it takes long.
LONG = {"forgetting": forgetting.measure}


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all but the long ones."""
    known = BENCHMARKS | LONG
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or BENCHMARKS:
        print(f"{name}...", flush=True)
        print(f"  {write(name, known[name]())}", flush=True)
    page.update()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
