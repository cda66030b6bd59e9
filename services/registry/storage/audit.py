"""The audit trail: insert-only, no login may update or delete rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, LiteralString
from uuid import UUID

from services.kit.ids import uuid7
from services.kit.pg import Db

_INSERT: Final[LiteralString] = """
    INSERT INTO audit_events
           (id, tenant_id, actor_id, action, target_kind, target_id, before, after)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""


async def insert_event(
    db: Db,
    action: str,
    target: tuple[str, UUID],
    *,
    actor_id: UUID,
    tenant_id: UUID,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Record who did what to whom, within the transaction that does it.

    The values must hold no secrets and no personal data: they can never be removed.
    """
    await db.execute(
        _INSERT,
        uuid7(),
        tenant_id,
        actor_id,
        action,
        *target,
        dict(before or {}),
        dict(after or {}),
    )
