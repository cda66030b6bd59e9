"""Node versions: immutable code and types, and their locks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

from services.kit.pg import Pool, Row


@dataclass(frozen=True, slots=True)
class NodeVersion:
    """One node version, as it runs."""

    id: UUID
    tenant_id: UUID  # of its author
    code: str
    main_function: str
    python_version: str
    input_types: Sequence[dict[str, Any]]
    output_types: Sequence[dict[str, Any]]
    lock_state: str
    lock: str
    lock_digest: str
    lock_error: str
    is_async: bool = False


_GET: Final[LiteralString] = """
    SELECT v.id, n.tenant_id, v.code, v.main_function, v.python_version, v.input_types,
           v.output_types, v.is_async,
           coalesce(l.state, 'none') AS lock_state, coalesce(l.lock, '') AS lock,
           coalesce(l.lock_digest, '') AS lock_digest, coalesce(l.error, '') AS lock_error
      FROM python_node_versions v
      JOIN python_nodes n ON n.id = v.node_id
      LEFT JOIN node_version_locks l ON l.node_version_id = v.id
     WHERE v.id = $1
"""


async def get_version(pool: Pool, node_version_id: UUID) -> NodeVersion | None:
    """Return one version with its current lock; None if it does not exist."""
    row = await pool.fetchrow(_GET, node_version_id)
    return None if row is None else _to_version(row)


def _to_version(row: Row) -> NodeVersion:
    return NodeVersion(
        id=row["id"],
        tenant_id=row["tenant_id"],
        code=row["code"],
        main_function=row["main_function"],
        python_version=row["python_version"],
        input_types=row["input_types"],
        output_types=row["output_types"],
        lock_state=row["lock_state"],
        lock=row["lock"],
        lock_digest=row["lock_digest"],
        lock_error=row["lock_error"],
        is_async=row["is_async"],
    )
