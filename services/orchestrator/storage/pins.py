"""Pins of runs of a single node, and of runs made of another run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.ids import uuid7
from services.kit.pg import Db
from services.orchestrator.domain.plan import NodeVersion
from services.orchestrator.domain.reuse import Edits
from services.orchestrator.domain.single import PLACE
from services.orchestrator.storage.definitions import Pins

_NODE_HEAD: Final[LiteralString] = """
    SELECT version FROM python_nodes WHERE id = $1 AND deleted_at IS NULL
"""


async def get_node_head(db: Db, node_id: UUID) -> int | None:
    """Return the current version of a node, if the caller of the transaction can read it."""
    version: int | None = await db.fetchval(_NODE_HEAD, node_id)
    return version


_NODE_VERSION: Final[LiteralString] = """
    SELECT id, python_version, output_types, input_types, node_id FROM python_node_versions
     WHERE node_id = $1 AND version = $2
"""


async def get_node_version(db: Db, node_id: UUID, version: int) -> NodeVersion | None:
    """Return one version of a node, with its inputs."""
    row = await db.fetchrow(_NODE_VERSION, node_id, version)
    return None if row is None else NodeVersion(**row)


_WHOLE_VERSIONS: Final[LiteralString] = """
    SELECT id, python_version, output_types, input_types, node_id FROM python_node_versions
     WHERE id = ANY($1)
"""


async def get_whole_versions(db: Db, ids: Iterable[UUID]) -> dict[UUID, NodeVersion]:
    """Return node versions by id, with their inputs."""
    rows = await db.fetch(_WHOLE_VERSIONS, list(set(ids)))
    return {row["id"]: NodeVersion(**row) for row in rows}


# Another tenant's node that became private is left out.
_READABLE: Final[LiteralString] = """
    SELECT version.id
      FROM python_node_versions AS version
      JOIN python_nodes AS node ON node.id = version.node_id
       AND (node.tenant_id = $1 OR node.is_public OR node.is_template)
     WHERE version.id = ANY($2)
"""


async def readable(db: Db, tenant_id: UUID, ids: Iterable[UUID]) -> set[UUID]:
    """Return which of these node versions a tenant can read."""
    return {row["id"] for row in await db.fetch(_READABLE, tenant_id, list(set(ids)))}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPins:
    """Pins to store, with the digest that identifies them within the tenant."""

    tenant_id: UUID
    digest: str
    workflow_id: UUID | None
    workflow_version: int | None
    by_place: Mapping[str, UUID]
    variables: Mapping[str, str]
    node_version_id: UUID | None
    inputs: Edits | None


_KEEP: Final[LiteralString] = """
    INSERT INTO execution_pins
           (id, tenant_id, digest, workflow_id, workflow_version, pins, variables,
            node_version_id, inputs)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (tenant_id, digest) DO NOTHING
"""
_FIND: Final[LiteralString] = """
    SELECT id FROM execution_pins WHERE tenant_id = $1 AND digest = $2
"""


async def _keep(db: Db, new: NewPins) -> UUID:
    by_place = {place: str(version) for place, version in sorted(new.by_place.items())}
    await db.execute(
        _KEEP,
        uuid7(),
        new.tenant_id,
        new.digest,
        new.workflow_id,
        new.workflow_version,
        by_place,
        dict(new.variables) or None,
        new.node_version_id,
        None if new.inputs is None else {place: dict(each) for place, each in new.inputs.items()},
    )
    found: UUID = await db.fetchval(_FIND, new.tenant_id, new.digest)
    return found


async def keep_node(db: Db, tenant_id: UUID, version_id: UUID) -> UUID:
    """Store the pins of a single node version, one row for all its runs; returns their id."""
    new = NewPins(
        tenant_id=tenant_id,
        digest=f"node {version_id}",
        workflow_id=None,
        workflow_version=None,
        by_place={PLACE: version_id},
        variables={},
        node_version_id=version_id,
        inputs=None,
    )
    return await _keep(db, new)


async def keep_edited(
    db: Db, tenant_id: UUID, pins: Pins, by_place: Mapping[str, UUID], inputs: Edits
) -> UUID:
    """Store the pins of a run made of another; returns their id.

    They belong to this run and runs made of it, are never found by a start, and are deleted with
    the runs.
    """
    new = NewPins(
        tenant_id=tenant_id,
        digest=f"edited {uuid7()}",
        workflow_id=pins.workflow_id,
        workflow_version=pins.workflow_version,
        by_place=by_place,
        variables=pins.variables,
        node_version_id=pins.node_version_id,
        inputs=inputs,
    )
    return await _keep(db, new)
