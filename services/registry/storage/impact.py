"""The workflows in which a node stands."""

from __future__ import annotations

from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db
from services.registry.domain.impact import SHOWN_MAX, Schedule

# The caller's own alone: nobody else's is the caller's to mend. The graphs themselves are read one
# by one afterwards: a page of large ones would be hundreds of megabytes.
_LIST_USERS: Final[LiteralString] = """
    SELECT w.id, w.created_at
      FROM workflow_node_uses u
      JOIN workflows w ON w.id = u.workflow_id
     WHERE u.tenant_id = $1 AND u.node_id = $2::text::uuid
       AND w.deleted_at IS NULL AND w.tenant_id = $1
       AND ($4::timestamptz IS NULL OR (w.created_at, w.id) < ($4, $5::uuid))
       AND w.nodes @> ANY (ARRAY[
               jsonb_build_array(jsonb_build_object('node_id', $2::text, 'version', 0)),
               jsonb_build_array(jsonb_build_object('node_id', $2::text, 'version', $3::int))])
     ORDER BY w.created_at DESC, w.id DESC
     LIMIT $6
"""


async def list_users(
    db: Db,
    node_id: UUID,
    *,
    tenant_id: UUID,
    pinned: int,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[tuple[datetime, UUID]]:
    """List a tenant's workflows in which a node floats, or stands at the version `pinned`.

    0 for `pinned` is no version: floating ones alone.
    """
    moment, last_id = after or (None, None)
    rows = await db.fetch(_LIST_USERS, tenant_id, str(node_id), pinned, moment, last_id, limit)
    return [(row["created_at"], row["id"]) for row in rows]


# An alias is looked up as a start would: the version that it points at now.
_LIST_SCHEDULES: Final[LiteralString] = """
    SELECT s.id, s.name, s.paused_at IS NOT NULL AS is_paused
      FROM schedules s
      LEFT JOIN workflow_aliases a ON a.workflow_id = s.workflow_id AND a.name = s.workflow_alias
     WHERE s.workflow_id = $1
       AND CASE WHEN s.workflow_alias <> '' THEN a.version = $2
                ELSE s.workflow_version IN (0, $2) END
     ORDER BY s.created_at DESC, s.id DESC
     LIMIT $3
"""


async def list_schedules(db: Db, workflow_id: UUID, *, version: int) -> tuple[Schedule, ...]:
    """List the schedules that start a workflow at its version `version`, the current one."""
    rows = await db.fetch(_LIST_SCHEDULES, workflow_id, version, SHOWN_MAX)
    return tuple(Schedule(row["id"], row["name"], row["is_paused"]) for row in rows)
