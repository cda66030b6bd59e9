"""Conversion between amounts of resources in messages and in the engine."""

from __future__ import annotations

from typing import Final

from qflow.orchestrator.v1 import quota_pb2

from services.orchestrator.domain.amounts import NOTHING, Amounts

US: Final = 1_000_000  # microseconds per second: the engine counts in microseconds


def amounts(said: quota_pb2.ResourceAmounts) -> Amounts:
    """Decode amounts; 0 means unlimited, which becomes None."""
    found = Amounts(
        said.nodes or None,
        said.cpu_seconds * US or None,
        said.gb_seconds * US or None,
        said.moved_bytes or None,
    )
    return NOTHING if found == NOTHING else found


def put_amounts(message: quota_pb2.ResourceAmounts, said: Amounts) -> None:
    """Encode amounts into a message; unlimited becomes 0."""
    nodes, cpu_us, gb_us, moved_bytes = (each or 0 for each in said)
    message.nodes, message.moved_bytes = nodes, moved_bytes
    message.cpu_seconds, message.gb_seconds = cpu_us // US, gb_us // US
