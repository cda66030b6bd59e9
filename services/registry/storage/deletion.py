"""Deletion marks of nodes and workflows; the rows stay."""

from __future__ import annotations

from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

_MARK_NODE: Final[LiteralString] = """
    UPDATE python_nodes
       SET deleted_at = CASE WHEN $2 THEN clock_timestamp() END
     WHERE id = $1
 RETURNING deleted_at, updated_at
"""


async def mark_node(db: Db, node_id: UUID, *, deleted: bool) -> tuple[datetime | None, datetime]:
    """Mark a locked node as deleted or not; returns its deletion and update times."""
    row = await db.fetchrow(_MARK_NODE, node_id, deleted)
    assert row is not None, "it is held"
    return row["deleted_at"], row["updated_at"]


_MARK_WORKFLOW: Final[LiteralString] = """
    UPDATE workflows
       SET deleted_at = CASE WHEN $2 THEN clock_timestamp() END
     WHERE id = $1
 RETURNING deleted_at, updated_at
"""


async def mark_workflow(
    db: Db, workflow_id: UUID, *, deleted: bool
) -> tuple[datetime | None, datetime]:
    """Mark a locked workflow as deleted or not; returns its deletion and update times."""
    row = await db.fetchrow(_MARK_WORKFLOW, workflow_id, deleted)
    assert row is not None, "it is held"
    return row["deleted_at"], row["updated_at"]
