"""The tenant's view of sandboxes."""

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
    """Give the sandboxes of the caller's tenant after a page's last key, newest first."""
    async with as_caller(pool, caller) as db:
        return await containers.list_page(db, caller.tenant_id, after=after, limit=limit)
