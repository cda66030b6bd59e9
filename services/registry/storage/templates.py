"""Whether a workflow is a template."""

from __future__ import annotations

from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

_IS_TEMPLATE: Final[LiteralString] = """
    SELECT is_template FROM workflows WHERE id = $1 AND deleted_at IS NULL
"""


async def is_template(db: Db, workflow_id: UUID) -> bool:
    """Return whether a workflow that the caller may read is a template."""
    return bool(await db.fetchval(_IS_TEMPLATE, workflow_id))
