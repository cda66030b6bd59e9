"""Workflow versions as the engine reads them, and what runs pin of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString
from uuid import UUID

from services.kit.ids import uuid7
from services.kit.pg import Db, Row
from services.orchestrator.domain.plan import Definition, NodeVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowHead:
    """What a start needs of the workflow itself."""

    id: UUID
    version: int
    is_active: bool
    python_version: str


_HEAD: Final[LiteralString] = """
    SELECT id, version, is_active, python_version
      FROM workflows WHERE id = $1 AND deleted_at IS NULL
"""


async def get_head(db: Db, workflow_id: UUID) -> WorkflowHead | None:
    """Return a workflow, if the caller of the transaction can read it."""
    row = await db.fetchrow(_HEAD, workflow_id)
    return None if row is None else WorkflowHead(**row)


_ALIASED: Final[LiteralString] = """
    SELECT version FROM workflow_aliases WHERE workflow_id = $1 AND name = $2
"""


async def get_aliased(db: Db, workflow_id: UUID, alias: str) -> int | None:
    """Return the version of an alias, if the caller can read the workflow."""
    version: int | None = await db.fetchval(_ALIASED, workflow_id, alias)
    return version


_DEFINITION: Final[LiteralString] = """
    SELECT workflow_id, version, nodes, connections, settings, input_types, output_types
      FROM workflow_versions WHERE workflow_id = $1 AND version = $2
"""


async def get_definition(db: Db, workflow_id: UUID, version: int) -> Definition | None:
    """Return one immutable version of a workflow."""
    row = await db.fetchrow(_DEFINITION, workflow_id, version)
    return None if row is None else _to_definition(row)


# Version 0 means the current one. Another tenant's node that became private is left out.
_RESOLVE: Final[LiteralString] = """
    SELECT wanted.place, version.id, version.python_version, version.output_types,
           version.input_types
      FROM unnest($1::text[], $2::uuid[], $3::int[]) AS wanted (place, node_id, version)
      JOIN python_nodes AS node
        ON node.id = wanted.node_id
       AND (node.tenant_id = $4 OR node.is_public OR node.is_template)
      JOIN python_node_versions AS version
        ON version.node_id = node.id
       AND version.version = COALESCE(NULLIF(wanted.version, 0), node.version)
"""


async def resolve(
    db: Db, tenant_id: UUID, nodes: Sequence[Mapping[str, Any]]
) -> dict[str, NodeVersion]:
    """Return the node version of each place of a definition as of now, by place.

    Places whose node the tenant cannot read are left out.
    """
    rows = await db.fetch(
        _RESOLVE,
        [str(node["id"]) for node in nodes],
        [UUID(node["node_id"]) for node in nodes],
        [int(node.get("version") or 0) for node in nodes],
        tenant_id,
    )
    return {row["place"]: _to_version(row, row["input_types"]) for row in rows}


# A sub-workflow, if a run of this tenant may start it. Version 0 means the current one.
_RESOLVE_WORKFLOW: Final[LiteralString] = """
    SELECT version.version
      FROM workflows AS workflow
      JOIN workflow_versions AS version
        ON version.workflow_id = workflow.id
       AND version.version = COALESCE(NULLIF($3, 0), workflow.version)
     WHERE workflow.id = $2 AND workflow.is_active AND workflow.deleted_at IS NULL
       AND (workflow.tenant_id = $1 OR workflow.is_template)
"""


async def resolve_workflow(db: Db, tenant_id: UUID, workflow_id: UUID, version: int) -> int | None:
    """Return the version of a sub-workflow as of now; None if it cannot be started."""
    found: int | None = await db.fetchval(_RESOLVE_WORKFLOW, tenant_id, workflow_id, version)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable; its `stamp` changes with each change of it."""

    name: str
    stamp: tuple[UUID, int]
    text: str


# A variable of the workflow takes precedence over one of the tenant. Those of other tenants are
# never read, not even for a template that one of them shares.
_VARIABLES: Final[LiteralString] = """
    SELECT DISTINCT ON (name) name, id, revision, CASE WHEN $4 THEN value::text END AS text
      FROM variables
     WHERE tenant_id = $1 AND name = ANY($3) AND (workflow_id IS NULL OR workflow_id = $2)
     ORDER BY name, workflow_id NULLS LAST
"""


async def get_variables(
    db: Db, tenant_id: UUID, workflow_id: UUID, names: Iterable[str], *, with_text: bool = True
) -> list[Variable]:
    """Return the existing ones of the variables that a workflow uses."""
    rows = await db.fetch(_VARIABLES, tenant_id, workflow_id, list(names), with_text)
    return [
        Variable(name=row["name"], stamp=(row["id"], row["revision"]), text=row["text"] or "")
        for row in rows
    ]


_VERSIONS: Final[LiteralString] = """
    SELECT id, python_version, output_types FROM python_node_versions WHERE id = ANY($1)
"""


async def get_versions(db: Db, ids: Iterable[UUID]) -> dict[UUID, NodeVersion]:
    """Return node versions by id, without inputs, which were checked when they were pinned."""
    rows = await db.fetch(_VERSIONS, list(set(ids)))
    return {row["id"]: _to_version(row) for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The node versions and variables that a run uses, by place."""

    id: UUID
    workflow_id: UUID | None  # None for a run of a single node
    workflow_version: int | None
    by_place: Mapping[str, UUID]
    variables: Mapping[str, str]  # JSON texts by name
    node_version_id: UUID | None  # of a run of a single node
    inputs: Mapping[str, Mapping[str, str]]  # edited JSON texts, by place and input


_KEEP_PINS: Final[LiteralString] = """
    INSERT INTO execution_pins
           (id, tenant_id, digest, workflow_id, workflow_version, pins, variables)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (tenant_id, digest) DO NOTHING
"""
_FIND_PINS: Final[LiteralString] = """
    SELECT id, workflow_id, workflow_version, pins, variables, node_version_id, inputs
      FROM execution_pins
     WHERE tenant_id = $1 AND digest = $2
"""


async def find_pins(
    db: Db,
    tenant_id: UUID,
    definition: Definition,
    pinned: Mapping[str, UUID],
    variables: Mapping[str, str],
) -> Pins | None:
    """Return the stored pins of a definition that resolved to the same versions and variables.

    `pinned` holds the node version's id by place; for a sub-workflow, the id of its pins.
    """
    digest = _digest_of(definition, _by_place(pinned), variables)
    row = await db.fetchrow(_FIND_PINS, tenant_id, digest)
    return None if row is None else _to_pins(row)


async def keep_pins(
    db: Db,
    tenant_id: UUID,
    definition: Definition,
    pinned: Mapping[str, UUID],
    variables: Mapping[str, str],
) -> Pins:
    """Store what a definition resolved to, one row for all runs with the same."""
    by_place = _by_place(pinned)
    digest = _digest_of(definition, by_place, variables)
    await db.execute(
        _KEEP_PINS,
        uuid7(),
        tenant_id,
        digest,
        definition.workflow_id,
        definition.version,
        by_place,
        dict(variables) or None,
    )
    row = await db.fetchrow(_FIND_PINS, tenant_id, digest)
    assert row is not None, "it was just kept"
    return _to_pins(row)


def _by_place(pinned: Mapping[str, UUID]) -> dict[str, str]:
    return {place: str(each) for place, each in sorted(pinned.items())}


def _digest_of(
    definition: Definition, by_place: Mapping[str, str], variables: Mapping[str, str]
) -> str:
    key = [str(definition.workflow_id), definition.version, by_place]
    if variables:
        key.append(dict(sorted(variables.items())))
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


_PINS: Final[LiteralString] = """
    SELECT id, workflow_id, workflow_version, pins, variables, node_version_id, inputs
      FROM execution_pins WHERE id = ANY($1)
"""


async def get_pins(db: Db, ids: Iterable[UUID]) -> list[Pins]:
    """Return pins by id."""
    return [_to_pins(row) for row in await db.fetch(_PINS, list(set(ids)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockState:
    """The state of the lock file of a node version's environment."""

    node_version_id: UUID
    state: str
    error: str | None


_LOCKS: Final[LiteralString] = """
    SELECT node_version_id, state, error FROM node_version_locks WHERE node_version_id = ANY($1)
"""


async def get_locks(db: Db, node_version_ids: Iterable[UUID]) -> list[LockState]:
    """Return the lock states of node versions; one without a row is not resolved yet."""
    rows = await db.fetch(_LOCKS, list(set(node_version_ids)))
    return [LockState(**row) for row in rows]


def _to_definition(row: Row) -> Definition:
    return Definition(
        workflow_id=row["workflow_id"],
        version=row["version"],
        nodes=row["nodes"],
        connections=row["connections"],
        settings=row["settings"] or {},
        input_types=row["input_types"],
        output_types=row["output_types"],
    )


def _to_version(row: Row, input_types: Sequence[Mapping[str, Any]] = ()) -> NodeVersion:
    return NodeVersion(
        id=row["id"],
        python_version=row["python_version"],
        output_types=row["output_types"],
        input_types=input_types,
    )


def _to_pins(row: Row) -> Pins:
    return Pins(
        id=row["id"],
        workflow_id=row["workflow_id"],
        workflow_version=row["workflow_version"],
        by_place={place: UUID(version) for place, version in row["pins"].items()},
        variables=row["variables"] or {},
        node_version_id=row["node_version_id"],
        inputs=row["inputs"] or {},
    )
