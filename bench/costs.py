"""What a bench took besides time: commits, log and processors, by node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.flow import Flow
from bench.processors import per_node_ms, spent_s


class Spent(NamedTuple):
    """What a suite has taken so far."""

    commits: int
    wal_bytes: int
    processors_s: Mapping[str, float]


async def spent(flow: Flow) -> Spent:
    """Give it as it stands."""
    return Spent(*await flow.spent(), spent_s(flow.suite))


async def costs(flow: Flow, before: Spent, nodes: int, *, sandboxes: int = 2) -> dict[str, Any]:
    """Give what a node took since; at least so many sandboxes must have run."""
    processors = spent_s(flow.suite)  # first: to ask for the rest takes time of its own
    commits, wal_bytes = await flow.spent()
    tiers = flow.sandboxes()
    assert sum(tiers.values()) >= sandboxes, tiers
    return {
        "tier": tiers,
        "durability": "strict",
        "commits_per_node": round((commits - before.commits) / nodes, 4),
        "wal_bytes_per_node": round((wal_bytes - before.wal_bytes) / nodes),
        "cpu_ms_per_node": per_node_ms(before.processors_s, processors, nodes),
    }
