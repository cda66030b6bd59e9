"""The workflows that use a node, and what starts them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.registry.domain.impact import SHOWN_MAX, Starter, Starters

# Only the caller's own, since only those are theirs to fix. Graphs are read one by one later: a
# page of large ones could take hundreds of megabytes.
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
    """List a tenant's workflows that use a node at its current version, or pinned to `pinned`.

    With 0 for `pinned`, only those with a floating reference.
    """
    moment, last_id = after or (None, None)
    rows = await db.fetch(_LIST_USERS, tenant_id, str(node_id), pinned, moment, last_id, limit)
    return [(row["created_at"], row["id"]) for row in rows]


# An alias counts if it points at the version now, as for a start.
_LIST_STARTERS: Final[LiteralString] = """
    WITH given AS (
        SELECT 'schedule' AS kind, id, name, workflow_version, workflow_alias, paused_at, created_at
          FROM schedules WHERE workflow_id = $1
         UNION ALL
        SELECT 'trigger', id, name, workflow_version, workflow_alias, paused_at, created_at
          FROM triggers WHERE workflow_id = $1),
    starts AS (
        SELECT g.kind, g.id, g.name, g.paused_at IS NOT NULL AS is_paused,
               row_number() OVER (PARTITION BY g.kind ORDER BY g.created_at DESC, g.id DESC) AS at
          FROM given g
          LEFT JOIN workflow_aliases a ON a.workflow_id = $1 AND a.name = g.workflow_alias
         WHERE CASE WHEN g.workflow_alias <> '' THEN a.version = $2
                    ELSE g.workflow_version IN (0, $2) END
         UNION ALL
        SELECT 'alias', a.id, a.name, false, row_number() OVER (ORDER BY a.name)
          FROM workflow_aliases a WHERE a.workflow_id = $1 AND a.version = $2)
    SELECT kind, id, name, is_paused FROM starts WHERE at <= $3 ORDER BY kind, at
"""


async def list_starters(db: Db, workflow_id: UUID, *, version: int) -> Starters:
    """List what starts a workflow at `version`, its current version."""
    rows = await db.fetch(_LIST_STARTERS, workflow_id, version, SHOWN_MAX)
    return Starters(
        schedules=_starters(rows, "schedule"),
        triggers=_starters(rows, "trigger"),
        aliases=tuple(row["name"] for row in rows if row["kind"] == "alias"),
    )


def _starters(rows: Iterable[Row], kind: str) -> tuple[Starter, ...]:
    return tuple(
        Starter(row["id"], row["name"], row["is_paused"]) for row in rows if row["kind"] == kind
    )
