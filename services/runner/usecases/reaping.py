"""Reconciles sandboxes with their rows, both ways."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from uuid import UUID

import structlog

from services.kit.pg import Pool
from services.runner.gateways.sandbox.port import SandboxHost
from services.runner.storage import containers

log = structlog.get_logger()


class Reaper:
    """Removes sandboxes that nobody holds, and closes rows whose sandboxes are gone."""

    def __init__(
        self,
        host: SandboxHost,
        pool: Pool,
        *,
        incarnation: Callable[[], UUID],
        kept: Callable[[], AbstractSet[UUID]],
    ) -> None:
        self._host = host
        self._pool = pool
        self._incarnation = incarnation
        self._kept = kept
        self._suspects: frozenset[UUID] = frozenset()

    async def look(self, *, rows: bool = True) -> tuple[int, int]:
        """Reconcile once; return the numbers of removed sandboxes and closed rows."""
        strays = await self._host.strays()
        for sandbox_id in strays:
            await self._host.remove(sandbox_id)
        lost = await self._close_lost() if rows else frozenset[UUID]()
        if strays or lost:
            log.warning("containers_reaped", sandboxes=len(strays), rows=len(lost))
        return len(strays), len(lost)

    async def _close_lost(self) -> frozenset[UUID]:
        incarnation = self._incarnation()
        open_rows = await containers.open_rows(self._pool, incarnation)
        # The end of a row may still be queued for writing: only a row found twice counts as lost.
        unkept = frozenset(open_rows - self._kept())
        lost = unkept & self._suspects
        self._suspects = unkept
        if lost:
            await containers.close_lost(self._pool, incarnation, lost)
        return lost
