"""Quotas: set by administrators, and shown to tenants with their usage."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import NotFound, no_such
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.pg import Db, Pool, as_caller, transaction
from services.kit.updates import check_etag
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import limit_slots, quota_usage, quotas
from services.orchestrator.storage.quota_usage import Usage
from services.orchestrator.storage.quotas import Numbers, StoredQuota
from services.orchestrator.usecases.limits import read_limits

log = structlog.get_logger()


class Account(NamedTuple):
    """A tenant's quota and usage."""

    quota: StoredQuota
    usage: Usage


class QuotaKeeper:
    """Manages the quotas of tenants."""

    def __init__(self, api_pool: Pool, engine_pool: Pool, engine: Engine) -> None:
        self._api_pool = api_pool
        self._engine_pool = engine_pool
        self._engine = engine

    async def get(self, caller: Caller, tenant_id: UUID) -> Account:
        """Return a tenant's quota and usage; raises `NotFound` for an unknown tenant."""
        await self._check(tenant_id)
        async with as_caller(self._api_pool, caller) as db:
            found = await quotas.get_quota(db, tenant_id)
        return await self._with_usage(found)

    async def set(
        self,
        caller: Caller,
        tenant_id: UUID,
        numbers: Numbers,
        *,
        etag: str,
        key: RequestKey[Account] | None,
    ) -> Account | Replayed:
        """Set the quota of a tenant, for what begins from now on."""

        async def write(db: Db) -> Account:
            await quotas.lock(db, tenant_id)
            before = await quotas.get_quota(db, tenant_id)
            check_etag("quota", before.etag, etag)
            return await self._with_usage(await quotas.set_quota(db, tenant_id, numbers))

        await self._check(tenant_id)
        answer = await do_once(self._api_pool, caller, key, write)
        if isinstance(answer, Replayed):
            return answer
        log.info("quota_set", tenant_id=str(tenant_id))
        await read_limits(self._engine, self._engine_pool)
        async with transaction(self._engine_pool) as db:
            await limit_slots.tell_changed(db)
        return answer

    async def _check(self, tenant_id: UUID) -> None:
        """Check that the tenant exists, as the engine: administrators cannot read its row."""
        async with transaction(self._engine_pool) as db:
            if not await quota_usage.tenant_exists(db, tenant_id):
                raise _no_tenant(tenant_id)

    async def _with_usage(self, quota: StoredQuota) -> Account:
        async with transaction(self._engine_pool) as db:
            return Account(quota, await quota_usage.get_usage(db, quota.tenant_id))


def _no_tenant(tenant_id: UUID) -> NotFound:
    fault = (
        "there is no such tenant; a user's own has the id of the user, a team's that of the team"
    )
    return no_such(
        "tenant_id", tenant_id, "TENANT_NOT_FOUND", fault, resource=("tenant", str(tenant_id))
    )
