"""A tenant's own package configuration: rules, wheels, and private indexes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from services.kit.pg import Pool
from services.kit.root_keys import RootKeys
from services.runner.domain.package_indexes import OpenIndex
from services.runner.domain.package_rules import PackageRules, RuleBook
from services.runner.gateways.wheel_store import WheelStore
from services.runner.storage import package_indexes, package_rules, wheels
from services.runner.usecases.package_indexes import opened


class TenantPackages:
    """Reads it for any tenant, always from the current rows."""

    def __init__(
        self,
        pool: Pool,
        store: WheelStore,
        *,
        root: Path,
        deployment: PackageRules,
        keys: RootKeys | None = None,
        trusted: Sequence[str] = (),
    ) -> None:
        self._pool = pool
        self._store = store
        self._root = root
        self._deployment = deployment
        self._keys = keys
        self._trusted = trusted
        self._showing = asyncio.Lock()

    async def rules_of(self, tenant_id: UUID) -> RuleBook:
        """Return the rules that apply to a tenant: its own and the deployment's."""
        return RuleBook((self._deployment, await package_rules.of_tenant(self._pool, tenant_id)))

    async def own_wheels(self, tenant_id: UUID) -> Path | None:
        """Return a folder with the tenant's current wheels; None if it has none."""
        files = await wheels.files_of(self._pool, tenant_id)
        folder = self._root / str(tenant_id) / ".wheels"
        if not files:
            return None
        async with self._showing:
            await asyncio.to_thread(self._store.show, tenant_id, files, folder)
        return folder

    async def indexes(self, tenant_id: UUID) -> Sequence[OpenIndex]:
        """Return the tenant's indexes with their passwords decrypted; raises IndexRefused."""
        found = await package_indexes.of_tenant(self._pool, tenant_id)
        return [opened(each, self._keys, trusted=self._trusted) for each in found]

    async def sweep(self) -> int:
        """Remove bytes of wheels without rows, left by failed uploads; return how many."""
        found = 0
        for tenant_id in await asyncio.to_thread(self._store.tenants):
            known = await wheels.files_of(self._pool, tenant_id)
            found += await asyncio.to_thread(self._store.sweep, tenant_id, set(known.values()))
        return found
