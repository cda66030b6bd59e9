"""The answer to calls that need more than this runner's disk has."""

from __future__ import annotations

from services.kit.errors import ResourceExhausted
from services.runner.gateways.uv import DISK_FULL


def disk_refuses(why: str, *, retry_after_s: float) -> ResourceExhausted:
    """Make the error; nothing of what was asked for stays."""
    return ResourceExhausted(
        DISK_FULL, f"the disk of the runner refused: {why}", retry_after_s=retry_after_s
    )
