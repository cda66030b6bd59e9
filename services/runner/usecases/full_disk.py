"""The error of calls that need more disk space than this runner has."""

from __future__ import annotations

from services.kit.errors import ResourceExhausted
from services.runner.gateways.uv import DISK_FULL


def disk_refuses(why: str, *, retry_after_s: float) -> ResourceExhausted:
    """Return the error; callers must leave nothing behind."""
    return ResourceExhausted(
        DISK_FULL, f"the disk of the runner refused: {why}", retry_after_s=retry_after_s
    )
