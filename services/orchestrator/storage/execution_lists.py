"""Finds the ids of a page of executions by filter and order, before their rows are read.

The SQL is built from constants only: those below and the conditions of the fields. A caller's input
selects among them and is passed as parameters; `tests/contracts/test_sql.py` prepares every field,
operator and order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.filter.fields import (
    Field,
    FieldTable,
    compile_filter,
    flag_field,
    id_field,
    text_field,
    time_field,
)
from services.kit.filter.language import Expression
from services.kit.filter.order import Order, OrderField
from services.kit.page import Found
from services.kit.pg import Db, Pool, connection
from services.orchestrator.domain.status import RunStatus

# With more candidates than this a search scans in the list's order instead.
CANDIDATES_MAX: Final = 2_000
LABELS: Final = "labels."

_STATUSES: Final = frozenset(RunStatus)
_LABEL_KEY: Final = re.compile(r"[a-z][a-z0-9_./-]{0,62}")  # as StartExecution takes it
_PRIORITY: Final = re.compile(r"-?[0-9]{1,3}")
# What the first failing node raised is in its row; without a failure no row is looked up.
_EXCEPTION_TYPE: Final[LiteralString] = """
    COALESCE(CASE WHEN listed.failed_node_id IS NOT NULL THEN (
        SELECT failed.error_detail ->> 'exception' FROM node_executions AS failed
         WHERE failed.workflow_execution_id = listed.id
           AND failed.node_id = listed.failed_node_id) END, '')"""

# Whether a retry, a rerun or a fork was made from it: what a bulk call need not make once more.
_REPEATED: Final[LiteralString] = """
    EXISTS (SELECT FROM workflow_executions AS later
             WHERE later.parent_execution_id = listed.id AND later.relation <> 'sub_workflow')"""
_NAMED: Final[LiteralString] = "listed.workflow_id IN (SELECT id FROM workflows WHERE {})"


def _nullable(field: Field, column: LiteralString) -> Field:
    """Make conditions false rather than NULL where there is no value, so that NOT matches those."""
    conditions: dict[str, LiteralString] = {
        operator: f"({condition} AND {column} IS NOT NULL)"
        for operator, condition in field.sql.items()
    }
    if "!=" in conditions:
        conditions["!="] = f"NOT {conditions['=']}"
    return Field(field.name, conditions, field.read, field.wanted)


def _status(text: str) -> str | None:
    return text if text in _STATUSES else None


def _priority(text: str) -> int | None:
    return int(text) if _PRIORITY.fullmatch(text) else None


def _label(name: str) -> Field | None:
    """Return the field of one label, which tests containment; None where no run can have it."""
    key = name.removeprefix(LABELS)
    if not _LABEL_KEY.fullmatch(key):
        return None
    return Field(
        name,
        {
            "=": "listed.labels @> {}::text::jsonb",
            "!=": "NOT listed.labels @> {}::text::jsonb",
        },
        lambda text: label_text(key, text),
        "text",
    )


def label_text(key: str, value: str) -> str:
    """Return one label as a JSON object, for a containment test."""
    return json.dumps({key: value})


FIELDS: Final = FieldTable(
    (
        Field(
            "status",
            {"=": "listed.status = {}::text", "!=": "listed.status <> {}::text"},
            _status,
            "one of " + ", ".join(RunStatus),
        ),
        _nullable(id_field("workflow", "listed.workflow_id"), "listed.workflow_id"),
        _nullable(
            Field(
                "workflow_name",
                {
                    "=": _NAMED.format("name = {}::text"),
                    "!=": "",
                    ":": _NAMED.format("strpos(lower(name), lower({}::text)) > 0"),
                },
                lambda text: text,
                "text",
            ),
            "listed.workflow_id",
        ),
        _nullable(id_field("node_version", "listed.node_version_id"), "listed.node_version_id"),
        id_field("owner", "listed.created_by"),
        _nullable(text_field("business_key", "listed.business_key"), "listed.business_key"),
        text_field("relation", "COALESCE(listed.relation, '')"),
        _nullable(id_field("parent", "listed.parent_execution_id"), "listed.parent_execution_id"),
        flag_field("repeated", _REPEATED),
        text_field("error_type", "COALESCE(listed.error_type, '')"),
        text_field("exception_type", _EXCEPTION_TYPE),
        text_field("failed_node", "COALESCE(listed.failed_node_id, '')"),
        Field(
            "priority",
            {
                "=": "listed.priority = {}::integer",
                "!=": "listed.priority <> {}::integer",
                "<": "listed.priority < {}::integer",
                "<=": "listed.priority <= {}::integer",
                ">": "listed.priority > {}::integer",
                ">=": "listed.priority >= {}::integer",
            },
            _priority,
            "a whole number like -5",
        ),
        time_field("create_time", "listed.created_at"),
        _nullable(time_field("start_time", "listed.started_at"), "listed.started_at"),
        _nullable(time_field("end_time", "listed.completed_at"), "listed.completed_at"),
    ),
    "strpos(lower(COALESCE(listed.error_message, '')), lower({}::text)) > 0",
    {LABELS: _label},
)
ORDERS: Final = (
    OrderField("create_time", "listed.created_at", "timestamptz", datetime),
    OrderField("end_time", "listed.completed_at", "timestamptz", datetime),
)
NEWEST_FIRST: Final = Order(ORDERS[0], descending=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A list request: filter, order, last row of the previous page, limit."""

    expression: Expression | None
    order: Order = NEWEST_FIRST
    after: tuple[str | datetime, UUID] | None = None
    limit: int
    full: bool = False  # whether inputs and outputs will be read too


# The size of a JSON column is estimated from its compressed size on disk, about an eighth.
_FIND: Final = """
    SELECT listed.id, {column} AS key,
           CASE WHEN $3::boolean
                THEN 8 * (COALESCE(pg_column_size(listed.input_data), 0)
                        + COALESCE(pg_column_size(listed.output_data), 0))
                ELSE 0 END AS size_bytes
      FROM workflow_executions AS listed
     WHERE {whose} AND listed.purge_started_at IS NULL AND {condition}
     ORDER BY {column} {direction}, listed.id {direction}
     LIMIT $2::integer
"""
_AFTER: Final = " AND ({column}, listed.id) {beyond} ($4::{type}, $5::uuid)"


def statement(question: Question, *, among_ids: bool) -> tuple[str, tuple[object, ...]]:
    """Build the statement of a question; returns its text and its parameters from $4 on.

    $1 is the caller's tenant, or the ids to choose from; $2 the limit; $3 is `full`.
    """
    order = question.order
    # Ordered by a time that not every run has, only those with it are listed.
    condition = f"{order.field.column} IS NOT NULL"
    parameters = tuple[object, ...]()
    if question.after is not None:
        condition += _AFTER.format(
            column=order.field.column, beyond=order.beyond, type=order.field.sql_type
        )
        parameters = question.after
    if question.expression is not None:
        compiled = compile_filter(question.expression, FIELDS, first=4 + len(parameters))
        condition += f" AND {compiled.sql}"
        parameters += compiled.parameters
    text = _FIND.format(
        whose="listed.id = ANY ($1::uuid[])" if among_ids else "listed.tenant_id = $1::uuid",
        column=order.field.column,
        direction=order.direction,
        condition=condition,
    )
    return text, parameters


async def find(
    db: Db, question: Question, *, tenant_id: UUID, ids: Sequence[UUID] | None
) -> list[Found]:
    """Find a page of the caller's runs that match the filter; only among `ids`, if given."""
    text, parameters = statement(question, among_ids=ids is not None)
    whose = tenant_id if ids is None else ids
    rows = await db.fetch(text, whose, question.limit, question.full, *parameters)
    return [Found(row["id"], row["key"], row["size_bytes"]) for row in rows]


# Run with the engine's login, since under row-level security the operator would not use the index.
# It returns candidates only: the caller's statement decides which of them are visible.
_BY_LABELS: Final[LiteralString] = """
    SELECT CASE WHEN count(*) <= $3 THEN COALESCE(array_agg(id), '{}') END
      FROM (SELECT id FROM workflow_executions
             WHERE labels <> '{}'
               AND label_marks(tenant_id, labels) @> label_marks($1::uuid, $2::text::jsonb)
             LIMIT $3::integer + 1) AS candidates
"""


async def ids_by_labels(pool: Pool, labels: str, *, tenant_id: UUID) -> list[UUID] | None:
    """Return ids of runs with all these labels, a JSON object; None if they are too many."""
    async with connection(pool) as db:
        ids: list[UUID] | None = await db.fetchval(_BY_LABELS, tenant_id, labels, CANDIDATES_MAX)
    return ids


_DEPTHS: Final[LiteralString] = """
    WITH RECURSIVE above (part, holder) AS (
        SELECT id, parent_execution_id FROM workflow_executions
         WHERE id = ANY($1::uuid[]) AND relation = 'sub_workflow'
        UNION ALL
        SELECT above.part, run.parent_execution_id
          FROM above JOIN workflow_executions AS run
            ON run.id = above.holder AND run.relation = 'sub_workflow')
    SELECT part, count(*)::integer AS depth FROM above GROUP BY part
"""


async def depths(db: Db, ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return by run how many levels of parents it has; runs without a parent are left out."""
    return {row["part"]: row["depth"] for row in await db.fetch(_DEPTHS, ids)}
