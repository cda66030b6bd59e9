"""Replay seeds: `python -m tests.simulation SEED [SEED …]` tells what happened in each."""

from __future__ import annotations

import sys
import time
import traceback

from tests.simulation.world import World, quiet


def main(seeds: list[int]) -> int:
    """Live through each seed with a trace; returns how many of them failed."""
    quiet()
    failed = 0
    for seed in seeds:
        world = World(seed)
        world.tracing = True
        begun = time.perf_counter()
        try:
            world.run()
        except Exception:  # noqa: BLE001  # told with its trace, whatever it is
            failed += 1
            sys.stdout.write("\n".join(world.trace) + "\n")
            traceback.print_exc(file=sys.stdout)
        spent_ms = (time.perf_counter() - begun) * 1000
        told = ", ".join(f"{name} ({times})" for name, times in sorted(world.hits.items()))
        sys.stdout.write(
            f"seed {seed}: {len(world.store.nodes)} nodes, {world.store.flushes} flushes,"
            f" {world.loop.turns} turns, {world.loop.time():.1f} s in {spent_ms:.0f} ms; {told}\n"
        )
    return failed


if __name__ == "__main__":
    sys.exit(1 if main([int(each) for each in sys.argv[1:]]) else 0)
