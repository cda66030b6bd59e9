"""Executions for callers, under row-level security."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from services.kit.pg import Db, Row
from services.orchestrator.domain.amounts import NOTHING, Amounts
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class Execution(NamedTuple):
    """One row of workflow_executions; inputs and outputs are None if not requested."""

    id: UUID
    workflow_id: UUID | None  # None for a run of a single node
    workflow_version: int | None
    pins_id: UUID
    status: RunStatus
    revision: int
    created_by: UUID
    created_at: datetime | None
    request_id: UUID | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    deadline_at: datetime | None = None
    error_type: str | None = None
    error_message: str | None = None
    failed_node_id: str | None = None
    exception_type: str | None = None
    resource_usage: dict[str, Any] | None = None
    input_data: str | None = None
    output_data: str | None = None
    error_stack_trace: str | None = None
    business_key: str | None = None
    labels: Mapping[str, str] = _NONE
    priority: int = 0
    start_at: datetime | None = None
    parent_execution_id: UUID | None = None
    relation: str | None = None
    node_version_id: UUID | None = None
    python_version: str | None = None
    container_id: str | None = None
    ignores_cache: bool | None = None
    budget: Amounts = NOTHING
    counts: Mapping[str, int] = _NONE  # node rows by status
    parts: int = 0  # how many of those are elements of maps or turns of loops

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.completed_at is not None


# The exception class of the first failing node, from its row, found by an index.
EXCEPTION_TYPE: Final = """(
           SELECT failed.error_detail ->> 'exception' FROM node_executions AS failed
            WHERE failed.workflow_execution_id = workflow_executions.id
              AND failed.node_id = workflow_executions.failed_node_id) AS exception_type"""
_GET: Final[LiteralString] = f"""
    SELECT id, workflow_id, workflow_version, pins_id, status, created_by, created_at, request_id,
           started_at, completed_at, cancel_requested_at, deadline_at, error_type, error_message,
           failed_node_id, resource_usage, business_key, labels, priority, start_at,
           parent_execution_id, relation, node_version_id, python_version, container_id,
           ignores_cache, budget, {EXCEPTION_TYPE}, CASE WHEN $2 THEN input_data END AS input_data,
           CASE WHEN $3 THEN output_data END AS output_data,
           CASE WHEN $3 THEN error_stack_trace END AS error_stack_trace,
           GREATEST(workflow_executions.revision, nodes.revision) AS revision, nodes.counts,
           nodes.parts
      FROM workflow_executions
     CROSS JOIN LATERAL (
           SELECT COALESCE(max(revision), 0) AS revision,
                  jsonb_object_agg(status, n) FILTER (WHERE status IS NOT NULL) AS counts,
                  COALESCE(sum(parts), 0)::int AS parts
             FROM (SELECT status, count(*) AS n, max(revision) AS revision,
                          count(*) FILTER (WHERE node_id <> definition_node_id) AS parts
                     FROM node_executions WHERE workflow_execution_id = workflow_executions.id
                    GROUP BY status) AS by_status) AS nodes
     WHERE id = $1 AND purge_started_at IS NULL
"""


async def get(
    db: Db, execution_id: UUID, *, with_input: bool = False, with_output: bool = False
) -> Execution | None:
    """Return one execution, with the counts of its node rows."""
    row = await db.fetchrow(_GET, execution_id, with_input, with_output)
    return None if row is None else _to_execution(row)


# The digest shows whether a request is equal, without storing its body.
_FIND_REQUESTS: Final[LiteralString] = f"""
    SELECT id, workflow_id, workflow_version, pins_id, status, revision, created_by, created_at,
           request_id, started_at, completed_at, cancel_requested_at, deadline_at, error_type,
           error_message, failed_node_id, resource_usage, business_key, labels, priority, start_at,
           parent_execution_id, relation, node_version_id, python_version, container_id,
           ignores_cache, budget, {EXCEPTION_TYPE}, request_digest
      FROM workflow_executions
     WHERE tenant_id = current_tenant_id() AND created_by = $1 AND request_id = ANY($2)
"""


async def find_requests(
    db: Db, created_by: UUID, request_ids: Iterable[UUID]
) -> dict[UUID, tuple[Execution, str]]:
    """Return the executions by request id, each with the digest of its request."""
    found = {}
    for row in await db.fetch(_FIND_REQUESTS, created_by, list(request_ids)):
        values = dict(row)
        found[values["request_id"]] = _to_execution(values), values["request_digest"]
    return found


# Rows by id, for pages found before.
_READ: Final[LiteralString] = f"""
    SELECT id, workflow_id, workflow_version, pins_id, status, revision, created_by, created_at,
           request_id, started_at, completed_at, cancel_requested_at, deadline_at, error_type,
           error_message, failed_node_id, resource_usage, business_key, labels, priority, start_at,
           parent_execution_id, relation, node_version_id, python_version, container_id,
           ignores_cache, budget, {EXCEPTION_TYPE}, CASE WHEN $2 THEN input_data END AS input_data,
           CASE WHEN $2 THEN output_data END AS output_data,
           CASE WHEN $2 THEN error_stack_trace END AS error_stack_trace
      FROM workflow_executions
     WHERE id = ANY($1) AND purge_started_at IS NULL
"""


async def read(db: Db, ids: Sequence[UUID], *, full: bool) -> list[Execution]:
    """Return executions in the order of `ids`; those deleted meanwhile are left out."""
    rows = {row["id"]: row for row in await db.fetch(_READ, list(ids), full)}
    return [_to_execution(rows[each]) for each in ids if each in rows]


# First the open run that holds the key, then one that excludes reuse, then the latest.
_FIND_KEY: Final[LiteralString] = f"""
    SELECT id, workflow_id, workflow_version, pins_id, status, revision, created_by, created_at,
           request_id, started_at, completed_at, cancel_requested_at, deadline_at, error_type,
           error_message, failed_node_id, resource_usage, business_key, labels, priority, start_at,
           parent_execution_id, relation, node_version_id, python_version, container_id,
           ignores_cache, budget, {EXCEPTION_TYPE}
      FROM workflow_executions
     WHERE tenant_id = current_tenant_id() AND workflow_id = $1 AND business_key = $2
       AND purge_started_at IS NULL
     ORDER BY (completed_at IS NULL AND cancel_requested_at IS NULL) DESC,
              (status = 'completed') DESC, created_at DESC, id DESC
     LIMIT 1
"""


async def find_key(db: Db, workflow_id: UUID, business_key: str) -> Execution | None:
    """Return the run of a workflow that matters for a start with this business key, if any."""
    row = await db.fetchrow(_FIND_KEY, workflow_id, business_key)
    return None if row is None else _to_execution(row)


_FIND_HEIR: Final[LiteralString] = """
    SELECT id, status FROM workflow_executions
     WHERE parent_execution_id = $1 AND undoes_parent
"""


# By the rows of nodes, which refer to the last run of a retried sub-workflow.
_FIND_PUT_ASIDE: Final[LiteralString] = """
    WITH RECURSIVE below AS (
        SELECT child_execution_id AS id, definition_node_id AS place
          FROM node_executions
         WHERE workflow_execution_id = $1 AND child_execution_id IS NOT NULL
         UNION ALL
        SELECT node.child_execution_id, below.place
          FROM below
          JOIN node_executions AS node ON node.workflow_execution_id = below.id
         WHERE node.child_execution_id IS NOT NULL
    )
    SELECT id, place FROM below
     WHERE EXISTS (SELECT FROM node_executions AS node
                    WHERE node.workflow_execution_id = below.id AND node.status = 'quarantined')
     ORDER BY id
     LIMIT 1
"""


async def find_put_aside_below(db: Db, execution_id: UUID) -> tuple[UUID, str] | None:
    """Return the first sub-workflow with quarantined elements, and the node that contains it."""
    row = await db.fetchrow(_FIND_PUT_ASIDE, execution_id)
    return None if row is None else (row["id"], row["place"])


class Successor(NamedTuple):
    """A run made of another."""

    id: UUID
    status: RunStatus


async def find_heir(db: Db, execution_id: UUID) -> Successor | None:
    """Return the run that took over the compensations of another; there is at most one."""
    row = await db.fetchrow(_FIND_HEIR, execution_id)
    return None if row is None else Successor(row["id"], RunStatus(row["status"]))


_COUNTS: Final[LiteralString] = """
    SELECT workflow_execution_id, status, count(*) AS n,
           count(*) FILTER (WHERE node_id <> definition_node_id) AS parts
      FROM node_executions
     WHERE workflow_execution_id = ANY($1) GROUP BY workflow_execution_id, status
"""


class Counts(NamedTuple):
    """Node rows of a run by status, and how many are elements or turns."""

    by_status: dict[str, int]
    parts: int


async def get_counts(db: Db, execution_ids: Sequence[UUID]) -> dict[UUID, Counts]:
    """Return the counts of node rows by run."""
    found: dict[UUID, Counts] = {}
    for row in await db.fetch(_COUNTS, list(execution_ids)):
        run_id = row["workflow_execution_id"]
        counts = found.get(run_id, Counts({}, 0))
        counts.by_status[row["status"]] = row["n"]
        found[run_id] = counts._replace(parts=counts.parts + row["parts"])
    return found


def of_run(
    run: Run, completed_at: datetime | None = None, *, with_values: bool = True
) -> Execution:
    """Return a run from memory, for moments when that is committed: at its start and its end.

    Without values it is the BASIC view.
    """
    place, failure = run.failure or ("", None)
    failed = failure if run.status is RunStatus.FAILED else None
    counts: dict[str, int] = {}
    for record in run.records:
        if record is not None:
            counts[record.status] = counts.get(record.status, 0) + 1
    return Execution(
        id=run.id,
        workflow_id=run.plan.workflow_id,
        workflow_version=run.plan.workflow_version,
        pins_id=run.plan.pins_id,
        status=run.status,
        revision=run.revision,
        created_by=run.created_by,
        created_at=run.created_at,
        request_id=run.request_id,
        started_at=run.started_at,
        completed_at=completed_at,
        cancel_requested_at=run.cancel_requested_at,
        deadline_at=run.deadline_at,
        error_type=failed.error_type if failed else None,
        error_message=failed.message if failed else None,
        error_stack_trace=failed.stack_trace or None if failed and with_values else None,
        failed_node_id=(place or None) if failed else None,
        exception_type=failed.exception if failed else None,
        resource_usage={
            "cpu_us": run.cpu_us,
            "memory_peak_bytes": run.memory_peak_bytes,
            "io_read_bytes": run.io_read_bytes,
            "io_write_bytes": run.io_write_bytes,
        },
        business_key=run.options.business_key,
        labels=run.options.labels,
        priority=run.options.priority,
        start_at=run.options.start_at,
        parent_execution_id=run.options.parent_execution_id,
        relation=run.options.relation,
        node_version_id=run.options.node_version_id,
        ignores_cache=run.options.ignores_cache or None,
        budget=run.options.budget,
        python_version=run.plan.python_version,
        container_id=_container_of(run, place),
        input_data=run.input_text if with_values else None,
        output_data=run.output_data if with_values else None,
        counts=counts,
        parts=sum(each is not None for each in run.records[len(run.plan.places) :]),
    )


def _container_of(run: Run, failed_place: str) -> str | None:
    at = run.plan.index.get(failed_place)
    record = run.records[at] if at is not None else None
    found = (record and record.container_id) or run.container_id
    return str(found) if found else None


def without_values(execution: Execution) -> Execution:
    """Return the BASIC view of an execution."""
    return execution._replace(input_data=None, output_data=None, error_stack_trace=None)


def _to_execution(row: Row | dict[str, Any]) -> Execution:
    values = dict(row)
    values.pop("request_digest", None)
    values["status"] = RunStatus(values["status"])
    values["counts"] = values.get("counts") or {}
    values["budget"] = to_amounts(values["budget"])
    return Execution(**values)


def to_amounts(said: Mapping[str, int | None] | None) -> Amounts:
    """Decode the requested budget of a run."""
    return NOTHING if said is None else Amounts(**said)
