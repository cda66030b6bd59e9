"""Lists sandboxes for their tenant."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from services.kit.caller import Caller
from services.kit.pg import Pool, as_caller
from services.runner.storage import containers
from services.runner.storage.containers import Container


async def list_containers(
    pool: Pool, caller: Caller, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[Container]:
    """Return a page of the sandboxes of the caller's tenant, newest first."""
    async with as_caller(pool, caller) as db:
        return await containers.list_page(db, caller.tenant_id, after=after, limit=limit)
