"""Nodes identified by their content, as documents refer to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.registry.domain.exchange import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A node version identified by its content."""

    node_id: UUID
    version: int
    is_current: bool
    is_own: bool
    created_at: datetime
    code_bytes: int
    source: Source


# Versions show the same name and description as in GetNode. Reads the code's length, not the code.
_GET_SOURCES: Final[LiteralString] = """
    SELECT n.id, v.version, v.version = n.version AS is_current, n.tenant_id = $3 AS is_own,
           n.created_at, octet_length(v.code) AS code_bytes,
           CASE WHEN v.version = n.version THEN n.name ELSE v.name END AS name,
           CASE WHEN v.version = n.version THEN n.description ELSE v.description END AS description,
           v.python_version, v.main_function,
           encode(sha256(convert_to(v.code, 'UTF8')), 'hex') AS digest,
           asked.version AS asked
      FROM unnest($1::uuid[], $2::int[]) AS asked (node_id, version)
      JOIN python_nodes n ON n.id = asked.node_id AND n.deleted_at IS NULL
      JOIN python_node_versions v
        ON v.node_id = n.id AND v.version = COALESCE(NULLIF(asked.version, 0), n.version)
"""


async def get_sources(
    db: Db, asked: Sequence[tuple[UUID, int]], *, tenant_id: UUID
) -> dict[tuple[UUID, int], Stored]:
    """Return versions without code, 0 for the current one; unless the caller cannot see them."""
    rows = await db.fetch(
        _GET_SOURCES,
        [node_id for node_id, _ in asked],
        [version for _, version in asked],
        tenant_id,
    )
    return {(row["id"], row["asked"]): _to_stored(row) for row in rows}


_GET_NAMES: Final[LiteralString] = """
    SELECT asked.node_id, asked.version,
           CASE WHEN v.version = n.version THEN n.name ELSE v.name END AS name
      FROM unnest($1::uuid[], $2::int[]) AS asked (node_id, version)
      JOIN python_nodes n ON n.id = asked.node_id AND n.deleted_at IS NULL
      JOIN python_node_versions v
        ON v.node_id = n.id AND v.version = COALESCE(NULLIF(asked.version, 0), n.version)
"""


async def get_names(db: Db, asked: Sequence[tuple[UUID, int]]) -> dict[tuple[UUID, int], str]:
    """Return the names of versions; those the caller cannot see are missing."""
    rows = await db.fetch(
        _GET_NAMES, [node_id for node_id, _ in asked], [version for _, version in asked]
    )
    return {(row["node_id"], row["version"]): row["name"] for row in rows}


_GET_CODES: Final[LiteralString] = """
    SELECT v.node_id, v.version, v.code
      FROM unnest($1::uuid[], $2::int[]) AS asked (node_id, version)
      JOIN python_node_versions v ON v.node_id = asked.node_id AND v.version = asked.version
"""


async def get_codes(db: Db, asked: Sequence[tuple[UUID, int]]) -> dict[tuple[UUID, int], str]:
    """Return the code of versions."""
    rows = await db.fetch(
        _GET_CODES, [node_id for node_id, _ in asked], [version for _, version in asked]
    )
    return {(row["node_id"], row["version"]): row["code"] for row in rows}


# Ordered by preference: the caller's own nodes, current versions, oldest nodes.
_FIND_SOURCES: Final[LiteralString] = """
    SELECT n.id, v.version, v.version = n.version AS is_current, n.tenant_id = $3 AS is_own,
           n.created_at, octet_length(v.code) AS code_bytes,
           CASE WHEN v.version = n.version THEN n.name ELSE v.name END AS name,
           CASE WHEN v.version = n.version THEN n.description ELSE v.description END AS description,
           v.python_version, v.main_function,
           encode(sha256(convert_to(v.code, 'UTF8')), 'hex') AS digest
      FROM python_nodes n
      JOIN python_node_versions v ON v.node_id = n.id
     WHERE n.deleted_at IS NULL
       AND CASE WHEN v.version = n.version THEN n.name ELSE v.name END = ANY($1)
       AND encode(sha256(convert_to(v.code, 'UTF8')), 'hex') = ANY($2)
     ORDER BY is_own DESC, is_current DESC, n.created_at, n.id, v.version DESC
     LIMIT $4
"""


async def find_sources(
    db: Db, sources: Sequence[Source], *, tenant_id: UUID, limit: int
) -> list[Stored]:
    """Find versions with the name and code of any of these sources, in order of preference."""
    rows = await db.fetch(
        _FIND_SOURCES,
        list({each.name for each in sources}),
        list({each.digest.removeprefix("sha256:") for each in sources}),
        tenant_id,
        limit,
    )
    return [_to_stored(row) for row in rows]


def _to_stored(row: Row) -> Stored:
    return Stored(
        node_id=row["id"],
        version=row["version"],
        is_current=row["is_current"],
        is_own=row["is_own"],
        created_at=row["created_at"],
        code_bytes=row["code_bytes"],
        source=Source(
            name=row["name"],
            description=row["description"] or "",
            python_version=row["python_version"],
            main_function=row["main_function"],
            digest=f"sha256:{row['digest']}",
        ),
    )
