"""Resolve lock files of node versions: right after creation, and by retries later."""

from __future__ import annotations

import asyncio
from typing import Final
from uuid import UUID

import structlog

from services.kit.pg import Pool, transaction
from services.registry.gateways.environments import Environments, LockFailedError
from services.registry.storage import locks
from services.registry.storage.locks import PendingLock

log = structlog.get_logger()

_RESOLVE_S: Final = 120.0
_BATCH: Final = 4


class Locks:
    """Resolves pending locks in the background; each at most once at a time in this process."""

    def __init__(self, engine_pool: Pool, environments: Environments) -> None:
        self._pool = engine_pool
        self._environments = environments
        self._working: dict[UUID, asyncio.Task[None]] = {}
        # Set when there may be a pending lock that the loop does not know of yet.
        self.wake = asyncio.Event()

    async def resolve_soon(self, pending: PendingLock, *, wait_s: float) -> None:
        """Start to resolve a lock and wait up to `wait_s` seconds; resolving may take longer."""
        task = self._begin(pending)
        await asyncio.wait({task}, timeout=wait_s)

    async def resolve_due(self) -> float | None:
        """Resolve all locks that are due; returns the seconds until the next, None without any."""
        while True:
            async with transaction(self._pool) as db:
                wait = await locks.next_due_in(db)  # usually there is none at all
                if wait is None or wait.total_seconds() > 0:
                    break
                due = await locks.claim_due(db, limit=_BATCH)
            if not due:
                break  # another replica has claimed them
            await asyncio.wait({self._begin(each) for each in due})
        return None if wait is None else max(0.0, wait.total_seconds())

    async def close(self) -> None:
        """Cancel what is being resolved; it stays pending and is retried later."""
        tasks = list(self._working.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, pending: PendingLock) -> asyncio.Task[None]:
        task = self._working.get(pending.node_version_id)
        if task is None:
            task = asyncio.create_task(self._resolve(pending))
            self._working[pending.node_version_id] = task
            task.add_done_callback(lambda _: self._working.pop(pending.node_version_id, None))
        return task

    async def _resolve(self, pending: PendingLock) -> None:
        version_id = pending.node_version_id
        try:
            lock = await self._environments.resolve(
                pending.requirements,
                python_version=pending.python_version,
                tenant_id=pending.tenant_id,
                timeout_s=_RESOLVE_S,
            )
        except LockFailedError as error:
            async with transaction(self._pool) as db:
                await locks.save_failed(db, version_id, error=error.message, final=error.final)
            log.info("lock_not_made", node_version_id=str(version_id), final=error.final)
            self.wake.set()
            return
        except Exception:
            # Whatever failed, the row is still pending, and the loop retries it.
            log.exception("lock_crashed", node_version_id=str(version_id))
            self.wake.set()
            return
        try:
            async with transaction(self._pool) as db:
                await locks.save_locked(db, version_id, lock=lock.text, digest=lock.digest)
        except Exception:
            log.exception("lock_not_saved", node_version_id=str(version_id))
            self.wake.set()
            return
        log.info("lock_made", node_version_id=str(version_id), digest=lock.digest)
