"""Reads environments and Pythons on behalf of a caller."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, NotFound
from services.kit.pg import Pool, as_caller
from services.runner.storage import environment_lists, pythons
from services.runner.storage.environment_lists import StoredEnvironment


async def get_environment(pool: Pool, caller: Caller, environment_id: UUID) -> StoredEnvironment:
    """Return an environment of the caller's tenant; raises NotFound."""
    async with as_caller(pool, caller) as db:
        found = await environment_lists.get(db, caller.tenant_id, environment_id)
    if found is None:
        raise _missing(environment_id)
    return found


async def list_environments(
    pool: Pool, caller: Caller, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[StoredEnvironment]:
    """Return a page of the environments of the caller's tenant, newest first."""
    async with as_caller(pool, caller) as db:
        return await environment_lists.list_page(db, caller.tenant_id, after=after, limit=limit)


async def get_bom(pool: Pool, caller: Caller, environment_id: UUID) -> str:
    """Return an environment's bill of materials; FailedPrecondition if it was never built."""
    async with as_caller(pool, caller) as db:
        found = await environment_lists.get_bom(db, caller.tenant_id, environment_id)
        known = found or await environment_lists.get(db, caller.tenant_id, environment_id)
    if known is None:
        raise _missing(environment_id)
    if found is None:
        raise FailedPrecondition(
            "BOM_MISSING", "the environment was never built, so there is nothing to describe"
        )
    return found


async def count_pythons(pool: Pool, caller: Caller) -> dict[str, int]:
    """Return the number of runners by Python version."""
    async with as_caller(pool, caller) as db:
        return await pythons.count_by_version(db)


def _missing(environment_id: UUID) -> NotFound:
    return NotFound(
        "ENVIRONMENT_NOT_FOUND",
        "there is no such environment",
        resource=("environment", str(environment_id)),
    )
