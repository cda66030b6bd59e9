"""A cache of node versions: they never change, except their locks, until those are final."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final
from uuid import UUID

from services.kit.pg import Pool
from services.runner.storage import nodes
from services.runner.storage.nodes import NodeVersion
from services.runner.usecases.patience import patiently

_KEPT_MAX: Final = 2_000
_FINAL: Final = frozenset({"none", "locked"})


class NodeVersions:
    """A cache in front of the table."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: OrderedDict[UUID, NodeVersion] = OrderedDict()
        self._asking: dict[UUID, asyncio.Task[NodeVersion | None]] = {}

    async def get(self, node_version_id: UUID) -> NodeVersion | None:
        """Return a version, None if it does not exist; concurrent callers share one query."""
        known = self._known.get(node_version_id)
        if known is not None:
            return known
        asking = self._asking.get(node_version_id)
        if asking is None:
            asking = asyncio.create_task(
                patiently(lambda: nodes.get_version(self._pool, node_version_id))
            )
            self._asking[node_version_id] = asking
            asking.add_done_callback(lambda _: self._asking.pop(node_version_id, None))
        version = await asyncio.shield(asking)
        if version is not None and version.lock_state in _FINAL:
            self._known[node_version_id] = version
            while len(self._known) > _KEPT_MAX:
                self._known.popitem(last=False)
        return version
