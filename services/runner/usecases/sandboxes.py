"""The tenant's view of sandboxes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import InvalidArgument
from services.kit.pg import Pool, as_caller
from services.runner.storage import containers
from services.runner.storage.containers import Container


async def list_containers(
    pool: Pool, caller: Caller, *, after: Sequence[object] | None, limit: int
) -> list[Container]:
    """Give the sandboxes of the caller's tenant after a page's last key, newest first."""
    key: tuple[datetime, UUID] | None = None
    match after:
        case None:
            key = None
        case [datetime() as created_at, UUID() as container_id]:
            key = (created_at, container_id)
        case _:
            raise InvalidArgument("INVALID_PAGE", "page_token is not one of this list")
    async with as_caller(pool, caller) as db:
        return await containers.list_page(db, caller.tenant_id, after=key, limit=limit)
