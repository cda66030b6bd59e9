"""Workflows run as nodes of others: their signatures, and the workflows that they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

# A floating reference means the current version, for what it runs too.
_GET_SUB_WORKFLOWS: Final[LiteralString] = """
    SELECT asked.workflow_id, asked.version, w.name, w.is_active,
           v.input_types::json AS input_types, v.output_types::json AS output_types,
           jsonb_path_query_array(v.nodes, '$[*] ? (@.kind == "workflow")') AS places
      FROM unnest($1::uuid[], $2::int[]) AS asked (workflow_id, version)
      JOIN workflows w ON w.id = asked.workflow_id AND w.deleted_at IS NULL
      JOIN workflow_versions v
        ON v.workflow_id = w.id AND v.version = COALESCE(NULLIF(asked.version, 0), w.version)
"""


@dataclass(frozen=True, slots=True)
class SubWorkflow:
    """A version of a workflow; its types are JSON text, as those of nodes."""

    name: str
    is_active: bool
    input_types: str
    output_types: str
    runs: tuple[tuple[UUID, int], ...]  # ids and versions of its sub-workflows


async def get_sub_workflows(
    db: Db, asked: Sequence[tuple[UUID, int]]
) -> dict[tuple[UUID, int], SubWorkflow]:
    """Return workflow versions, 0 for the current one; those the caller cannot see are missing."""
    rows = await db.fetch(
        _GET_SUB_WORKFLOWS,
        [workflow_id for workflow_id, _ in asked],
        [version for _, version in asked],
    )
    return {
        (row["workflow_id"], row["version"]): SubWorkflow(
            row["name"],
            row["is_active"],
            row["input_types"],
            row["output_types"],
            tuple(
                dict.fromkeys((UUID(each["node_id"]), each["version"]) for each in row["places"])
            ),
        )
        for row in rows
    }


_FOREIGN_WORKFLOWS: Final[LiteralString] = """
    SELECT id, version
      FROM workflows
     WHERE id = ANY($1) AND tenant_id <> $2 AND deleted_at IS NULL
"""


async def foreign_workflows(
    db: Db, workflow_ids: Sequence[UUID], *, tenant_id: UUID
) -> dict[UUID, int]:
    """Return the current versions of those workflows that belong to other tenants."""
    rows = await db.fetch(_FOREIGN_WORKFLOWS, workflow_ids, tenant_id)
    return {row["id"]: row["version"] for row in rows}
