"""`python -m bench [name | list]`: run all benches or one; each prints one JSON line on stdout."""

from __future__ import annotations

import asyncio
import json
import sys

from bench.benches import BENCHES
from bench.machine import describe


def main(names: list[str]) -> int:
    """Run the named benches, all without a name; what they say besides goes to stderr."""
    if names == ["list"]:
        print("\n".join(BENCHES))
        return 0
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"no bench {unknown[0]}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    machine = describe()
    for name in names or BENCHES:
        print(f"bench {name} …", file=sys.stderr)
        figure = asyncio.run(BENCHES[name]())
        print(json.dumps({"bench": name, **figure, "machine": machine}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
