"""Upkeep of environments: leftovers of killed builds, their users, and their disk space."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from services.runner.gateways.environment_folders import sweep
from services.runner.usecases.environment_room import Room
from services.runner.usecases.environments import Environments
from services.runner.usecases.patience import passing
from services.runner.usecases.tenant_packages import TenantPackages

log = structlog.get_logger()

# Delay after something was used, to handle what follows shortly together with it.
_GATHER_S: Final = 5.0
# Without events: running sandboxes keep using environments that nobody requests again.
_CHECK_S: Final = 600.0


async def keep_environments(
    root: Path,
    environments: Environments,
    room: Room,
    packages: TenantPackages,
    in_use: Callable[[], frozenset[str]],
    stop: asyncio.Event,
) -> None:
    """Sweep once, then enforce the size budget whenever something was built or used."""
    left = await asyncio.to_thread(sweep, root)
    if left:
        log.warning("builds_swept", left=left)
    try:
        await packages.sweep()
    except Exception as problem:
        if not passing(problem):
            raise
        log.warning("wheels_not_swept", fault=type(problem).__name__)
    while not stop.is_set():
        await _first(stop, environments.stirred, timeout_s=_CHECK_S)
        await _first(stop, timeout_s=_GATHER_S)
        environments.stirred.clear()
        await environments.let_go(in_use())
        await room.keep()
    await environments.settle()


async def _first(*events: asyncio.Event, timeout_s: float) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
