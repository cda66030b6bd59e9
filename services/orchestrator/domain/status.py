"""The states of runs and nodes, and the transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Final


class RunStatus(StrEnum):
    """The states of runs, as stored."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class NodeStatus(StrEnum):
    """The states of node executions, as stored."""

    PENDING = "pending"
    RUNNING = "running"
    RETRYING = "retrying"
    WAITING = "waiting"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"


RUN_FINAL: Final = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})
NODE_FINAL: Final = frozenset(
    {
        NodeStatus.COMPLETED,
        NodeStatus.FAILED,
        NodeStatus.SKIPPED,
        NodeStatus.CANCELLED,
        NodeStatus.QUARANTINED,
    }
)
# Final states of failed nodes.
NODE_FAILED: Final = frozenset({NodeStatus.FAILED, NodeStatus.QUARANTINED})

# Allowed transitions, asserted on every change; a final status has none.
NODE_NEXT: Final[Mapping[NodeStatus, AbstractSet[NodeStatus]]] = {
    NodeStatus.PENDING: frozenset(
        {
            NodeStatus.RUNNING,
            NodeStatus.WAITING,
            NodeStatus.PAUSED,
            NodeStatus.COMPLETED,
            NodeStatus.FAILED,
            NodeStatus.SKIPPED,
            NodeStatus.CANCELLED,
        }
    ),
    NodeStatus.RUNNING: frozenset(
        {
            NodeStatus.RUNNING,  # moved to another runner, or being stopped
            NodeStatus.RETRYING,
            NodeStatus.COMPLETED,
            NodeStatus.FAILED,
            NodeStatus.CANCELLED,
            NodeStatus.QUARANTINED,
        }
    ),
    NodeStatus.RETRYING: frozenset(
        {
            NodeStatus.RUNNING,
            NodeStatus.WAITING,  # a sub-workflow is retried
            NodeStatus.PAUSED,
            NodeStatus.COMPLETED,  # skipped with an output
            NodeStatus.FAILED,
            NodeStatus.SKIPPED,
            NodeStatus.CANCELLED,
            NodeStatus.QUARANTINED,
        }
    ),
    NodeStatus.WAITING: frozenset(
        {
            NodeStatus.RETRYING,
            NodeStatus.COMPLETED,
            NodeStatus.FAILED,
            NodeStatus.SKIPPED,
            NodeStatus.CANCELLED,
            NodeStatus.QUARANTINED,
        }
    ),
    NodeStatus.PAUSED: frozenset(
        {
            NodeStatus.PENDING,
            NodeStatus.RETRYING,  # if it had begun before the pause
            NodeStatus.COMPLETED,
            NodeStatus.FAILED,  # by its timeout for all attempts
            NodeStatus.SKIPPED,
            NodeStatus.CANCELLED,
        }
    ),
    **{status: frozenset[NodeStatus]() for status in NODE_FINAL},
}
RUN_NEXT: Final[Mapping[RunStatus, AbstractSet[RunStatus]]] = {
    RunStatus.PENDING: frozenset({RunStatus.RUNNING, RunStatus.PAUSED, *RUN_FINAL}),
    RunStatus.RUNNING: frozenset({RunStatus.PAUSED, *RUN_FINAL}),
    # Back to pending if nothing of it has begun.
    RunStatus.PAUSED: frozenset({RunStatus.PENDING, RunStatus.RUNNING, *RUN_FINAL}),
    **{status: frozenset[RunStatus]() for status in RUN_FINAL},
}
