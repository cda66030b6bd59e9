"""Quotas of environments: before a build an older one is evicted, or the build is refused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from services.kit.pg import Pool
from services.runner.gateways.environment_folders import Built, built_of, evict
from services.runner.storage import environment_quotas, environments
from services.runner.storage.environment_quotas import NO_QUOTA, EnvironmentQuota
from services.runner.usecases.patience import passing, patiently

log = structlog.get_logger()

# How long a build waits for an environment to become idle before it fails, and is retried later.
_PATIENCE_S: Final = 10.0
_PAUSE_S: Final = 0.25


class EnvironmentQuotas:
    """Enforces the quotas of tenants below one folder.

    Callers hold the tenant's build lock: nothing else is built for it on this disk meanwhile.
    """

    def __init__(self, root: Path, pool: Pool, *, patience_s: float = _PATIENCE_S) -> None:
        self._root = root
        self._pool = pool
        self._patience_s = patience_s

    async def make_room(self, tenant_id: UUID, *, free: Callable[[str], None]) -> str:
        """Make room for one more environment; return an error text if a quota does not allow it.

        Evicts the least recently used first. `free` releases an environment that only idle
        sandboxes use.
        """
        quota = await patiently(lambda: environment_quotas.of_tenant(self._pool, tenant_id))
        if quota == NO_QUOTA:
            return ""
        folder = self._root / str(tenant_id)
        sized = quota.size_bytes is not None
        until = time.monotonic() + self._patience_s
        while True:
            built = await asyncio.to_thread(built_of, folder, sized=sized)
            over = _over(quota, built)
            if not over:
                return ""
            if not await self._evict_one(folder, built, free):
                if time.monotonic() >= until:
                    return over
                await asyncio.sleep(_PAUSE_S)

    async def _evict_one(
        self, folder: Path, built: Sequence[Built], free: Callable[[str], None]
    ) -> bool:
        for each in sorted(built, key=lambda each: each.used_at):
            free(each.key)
            if await asyncio.to_thread(evict, folder / each.key):
                log.info("environment_evicted", name=each.key, cache=False, why="quota")
                await self._tell(each.key)
                return True
        return False

    async def _tell(self, key: str) -> None:
        try:
            await environments.evicted(self._pool, key)
        except Exception as problem:
            if not passing(problem):
                raise
            log.warning("environment_row_delayed", fault=type(problem).__name__)


def _over(quota: EnvironmentQuota, built: Sequence[Built]) -> str:
    used_bytes = sum(each.size_bytes for each in built)
    for name, limit, used in (
        ("environments", quota.environments, len(built)),
        ("environment_bytes", quota.size_bytes, used_bytes),
    ):
        if limit is not None and used >= limit:
            return (
                f"the tenant's quota {name} is {limit}, and {used} of it are used by environments "
                "that are in use: have nodes share their requirements, wait until runs have ended, "
                "or ask an administrator for more"
            )
    return ""
