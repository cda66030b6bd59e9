"""When nodes and workflows were deleted; neither goes with its row."""

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
    """Delete a node that is held, or take that back; gives when it was deleted and changed."""
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
    """Delete a workflow that is held, or take that back; gives when it was deleted and changed."""
    row = await db.fetchrow(_MARK_WORKFLOW, workflow_id, deleted)
    assert row is not None, "it is held"
    return row["deleted_at"], row["updated_at"]
