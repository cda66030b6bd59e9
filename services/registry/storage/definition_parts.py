"""The large, immutable parts of versions: graphs and code."""

from __future__ import annotations

from typing import Any, Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

_GET_GRAPH: Final[LiteralString] = """
    SELECT nodes, connections FROM workflow_versions WHERE workflow_id = $1 AND version = $2
"""


async def get_graph(db: Db, workflow_id: UUID, version: int) -> list[Any] | None:
    """Return the nodes and connections of a version, as stored."""
    row = await db.fetchrow(_GET_GRAPH, workflow_id, version)
    return None if row is None else [row["nodes"], row["connections"]]


_GET_CODE: Final[LiteralString] = """
    SELECT code FROM python_node_versions WHERE node_id = $1 AND version = $2
"""


async def get_code(db: Db, node_id: UUID, version: int) -> str | None:
    """Return the code of a version."""
    code: str | None = await db.fetchval(_GET_CODE, node_id, version)
    return code
