"""Crash points of a flush: before and after its commit, named by what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.kit import crash
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.transition import Transition


def reach_flush(batch: Sequence[Transition], when: str) -> None:
    """Reach `flush_<what>_<when>` for each kind of row change in a batch; `when`: before, after."""
    for what in dict.fromkeys(each for t in batch for each in _contents(t)):
        crash.reach(f"flush_{what}_{when}")


def _contents(t: Transition) -> Iterator[str]:
    if t.run_inserts:
        yield "start"
    if t.node_inserts or any(each.starts for each in t.changes.values()):
        yield "assign"
    if t.completes:
        yield "complete"
    for change in t.changes.values():
        if change.status == NodeStatus.RETRYING:
            yield "retry"
        if change.status == NodeStatus.CANCELLED:
            yield "stopped"
    for moved in t.run_changes:
        if moved.cancels and not moved.final:
            yield "cancel"
        if moved.final:
            yield "finish"
