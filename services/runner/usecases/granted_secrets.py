"""Secrets granted to nodes: cached until a change is announced, and decrypted only here."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog

from services.kit.pg import Pool
from services.kit.root_keys import CannotOpen, RootKeys
from services.runner.domain.secrets import NO_MASK, Mask, variables_of
from services.runner.gateways.secret_box import rewrap, unseal
from services.runner.storage import secrets as stored
from services.runner.storage.secrets import StoredVersion
from services.runner.usecases.patience import patiently

log = structlog.get_logger()

# Maximum age of a cached grant, for changes whose notification was lost.
_AGE_MAX_S: Final = 5.0
_KEPT_MAX: Final = 1_000
_BATCH: Final = 100


class SecretsRefused(Exception):  # noqa: N818 - it says what happened
    """A node is granted secrets that this runner cannot decrypt."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The secrets of one call; calls share an interpreter only if these are the same."""

    mark: str = ""  # secrets and their versions; empty without any
    variables: dict[str, str] = field(default_factory=dict, repr=False)
    mask: Mask = field(default=NO_MASK, repr=False)


NOTHING_GRANTED: Final = Granted()


class GrantedSecrets:
    """Reads grants and decrypts their secrets."""

    def __init__(self, pool: Pool, keys: RootKeys | None) -> None:
        self._pool = pool
        self._keys = keys
        self._known: OrderedDict[tuple[UUID, UUID], tuple[Granted, float]] = OrderedDict()
        self._changes = 0
        self.changed = asyncio.Event()  # set when secrets or grants have changed

    def known(self, tenant_id: UUID, node_version_id: UUID) -> Granted | None:
        """Return the cached grant; None if it has to be read."""
        if self.changed.is_set():
            self.changed.clear()
            self._forget_all()
        found = self._known.get((tenant_id, node_version_id))
        return None if found is None or found[1] <= time.monotonic() else found[0]

    async def read(self, tenant_id: UUID, node_version_id: UUID) -> Granted:
        """Read what a node version is granted in runs of a tenant; raises SecretsRefused."""
        until = time.monotonic() + _AGE_MAX_S  # from before the query: the answer may be that old
        changes = self._changes
        found = await patiently(lambda: stored.granted(self._pool, tenant_id, node_version_id))
        granted = self._opened(found)
        if self.changed.is_set() or changes != self._changes:
            return granted  # may predate the change: valid for this call, but not cached
        key = (tenant_id, node_version_id)
        self._known[key] = (granted, until)
        self._known.move_to_end(key)
        while len(self._known) > _KEPT_MAX:
            self._known.popitem(last=False)
        return granted

    def forget(self, tenant_id: UUID) -> None:
        """Drop the cached grants of a tenant."""
        self._changes += 1
        for key in [each for each in self._known if each[0] == tenant_id]:
            del self._known[key]

    def _forget_all(self) -> None:
        self._changes += 1
        self._known.clear()

    def _opened(self, found: list[StoredVersion]) -> Granted:
        if not found:
            return NOTHING_GRANTED
        if self._keys is None:
            raise SecretsRefused("the node is granted secrets, and this runner has no key for them")
        values: dict[str, str] = {}
        for each in found:
            try:
                values[each.name] = unseal(
                    self._keys,
                    each.sealed,
                    tenant_id=each.tenant_id,
                    secret_id=each.secret_id,
                    version=each.version,
                )
            except CannotOpen as problem:
                raise SecretsRefused(f"the secret {each.name}: {problem}") from None
        mark = ",".join(f"{each.secret_id}:{each.version}" for each in found)
        return Granted(mark, variables_of(values), Mask(values.values()))

    async def rewrap_all(self) -> int:
        """Rewrap every version under the current root key; return how many were rewrapped."""
        if self._keys is None:
            return 0
        moved, after = 0, None
        while True:
            found = await stored.under_other_keys(
                self._pool, self._keys.current, after=after, limit=_BATCH
            )
            for each in found:
                moved += await self._rewrap(self._keys, each)
            if len(found) < _BATCH:
                break
            after = (found[-1].secret_id, found[-1].version)
        if moved:
            log.info("secrets_rewrapped", versions=moved, key_id=self._keys.current)
        return moved

    async def _rewrap(self, keys: RootKeys, version: StoredVersion) -> int:
        try:
            sealed = rewrap(
                keys,
                version.sealed,
                tenant_id=version.tenant_id,
                secret_id=version.secret_id,
                version=version.version,
            )
        except CannotOpen as problem:
            log.warning("secret_not_moved", secret_id=str(version.secret_id), fault=str(problem))
            return 0
        await stored.save_rewrapped(self._pool, version, sealed)
        return 1
