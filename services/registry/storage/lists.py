"""Find the rows of a list, by filter and order, as ids with the size of each row.

This is the one module of the registry that composes statements. Each filter adds conditions and
each order another key, and a fixed statement that covered them all by parameters could use no
index. The text is composed of constants only: those below and the conditions of the field tables. A
caller's words select among them or become parameters. `tests/contracts/test_sql.py` prepares every
field, operator and order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.filter.fields import (
    FieldTable,
    compile_filter,
    flag_field,
    id_field,
    member_field,
    text_field,
    time_field,
)
from services.kit.filter.language import Expression
from services.kit.filter.order import Order, OrderField
from services.kit.page import Found
from services.kit.pg import Db

# Number of the tenant's own rows that are scanned before an index is used. What one row in ten has
# fills a page from them; for rare matches the scan costs about two milliseconds. If the hit rate
# promises a full page within half of `WALKED_MAX` rows, up to `WALKED_MAX` are scanned, since the
# estimate is rough and an index does not help for what is so common.
WALKED_FIRST: Final = 500
WALKED_MAX: Final = 8_000

_TAGGED_NODE: Final = """EXISTS (
    SELECT FROM python_node_tag_relations r JOIN python_node_tags t ON t.id = r.tag_id
     WHERE r.node_id = listed.id AND t.name = {}::text)"""
_TAGGED_WORKFLOW: Final = """EXISTS (
    SELECT FROM workflow_tag_relations r JOIN workflow_tags t ON t.id = r.tag_id
     WHERE r.workflow_id = listed.id AND t.name = {}::text)"""
_WORDS: Final = """strpos(lower(listed.name), lower({0}::text)) > 0
    OR strpos(lower(COALESCE(listed.description, '')), lower({0}::text)) > 0"""

_ORDERS: Final = (
    OrderField("create_time", "listed.created_at", "timestamptz", datetime),
    OrderField("update_time", "listed.updated_at", "timestamptz", datetime),
    OrderField("name", "listed.name", "text", str),
)
NEWEST_FIRST: Final = Order(_ORDERS[0], descending=True)
_COMMON: Final = (
    text_field("name", "listed.name"),
    text_field("description", "COALESCE(listed.description, '')"),
    flag_field("template", "listed.is_template"),
    id_field("owner", "listed.created_by"),
    text_field("python_version", "listed.python_version"),
    time_field("create_time", "listed.created_at"),
    time_field("update_time", "listed.updated_at"),
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A listed table: the filters and orders it supports, and the parts of its statements."""

    table: LiteralString
    shown: LiteralString  # the rows that every tenant may read, as in the policy and the indexes
    size_bytes: LiteralString  # rough size of a row when read; $3: whether read whole
    fields: FieldTable
    orders: Sequence[OrderField]


# A JSON column is measured by its compressed size, about an eighth of the decoded one.
NODES: Final = Listed(
    table="python_nodes",
    shown="(listed.is_template OR listed.is_public)",
    size_bytes="""8 * (pg_column_size(listed.input_types) + pg_column_size(listed.output_types))
        + CASE WHEN $3::boolean THEN octet_length(listed.code) ELSE 0 END""",
    fields=FieldTable(
        (
            *_COMMON,
            flag_field("public", "listed.is_public"),
            member_field("tags", _TAGGED_NODE),
        ),
        _WORDS,
    ),
    orders=_ORDERS,
)
WORKFLOWS: Final = Listed(
    table="workflows",
    shown="listed.is_template",
    size_bytes="""8 * (pg_column_size(listed.input_types) + pg_column_size(listed.output_types)
        + CASE WHEN $3::boolean
               THEN pg_column_size(listed.nodes) + pg_column_size(listed.connections)
               ELSE 0 END)""",
    fields=FieldTable(
        (
            *_COMMON,
            flag_field("active", "listed.is_active"),
            member_field("tags", _TAGGED_WORKFLOW),
        ),
        _WORDS,
    ),
    orders=_ORDERS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A query of a list: filter, order, cursor and limit."""

    expression: Expression | None
    order: Order
    after: tuple[str | datetime, UUID] | None
    limit: int
    full: bool  # whether the rows will be read whole
    with_deleted: bool = False  # also the tenant's own deleted ones


_STANDING: Final = "listed.deleted_at IS NULL"
_ANY: Final = "true"
_AFTER: Final = " AND ({column}, listed.id) {beyond} ($4::{type}, $5::uuid)"

# The tenant's own rows and the shared ones each have an index: two pages are merged, since one
# condition for both would scan the rows of all tenants.
_BY_ORDER: Final = """
    SELECT id, key, size_bytes
      FROM ((SELECT listed.id, {column} AS key, {size_bytes} AS size_bytes
               FROM {table} AS listed
              WHERE listed.tenant_id = $1::uuid AND {condition}
              ORDER BY {column} {direction}, listed.id {direction}
              LIMIT $2::integer)
            UNION ALL
            (SELECT listed.id, {column} AS key, {size_bytes} AS size_bytes
               FROM {table} AS listed
              WHERE {shown} AND {standing} AND listed.tenant_id <> $1::uuid AND {condition}
              ORDER BY {column} {direction}, listed.id {direction}
              LIMIT $2::integer)) AS found
     ORDER BY key {direction}, id {direction}
     LIMIT $2::integer
"""
# A page of frequent matches. If the tenant's own first rows fill it, it is complete, since shared
# rows are scanned up to the same point. Otherwise it returns only the matches among the tenant's
# own rows, whose number predicts how far a page would reach.
_BY_FIRST: Final = """
    WITH own AS MATERIALIZED (
        SELECT listed.id, {column} AS key, {size_bytes} AS size_bytes
          FROM (SELECT *
                  FROM {table} AS listed
                 WHERE listed.tenant_id = $1::uuid AND {begun}
                 ORDER BY {column} {direction}, listed.id {direction}
                 LIMIT {walked}) AS listed
         WHERE {filter}
         ORDER BY {column} {direction}, listed.id {direction}
         LIMIT $2::integer)
    SELECT id, key, size_bytes
      FROM ((SELECT id, key, size_bytes FROM own)
            UNION ALL
            (SELECT listed.id, {column} AS key, {size_bytes} AS size_bytes
               FROM {table} AS listed
              WHERE {shown} AND {standing} AND listed.tenant_id <> $1::uuid
                AND {begun} AND {filter} AND (SELECT count(*) FROM own) = $2::integer
              ORDER BY {column} {direction}, listed.id {direction}
              LIMIT $2::integer)) AS found
     ORDER BY key {direction}, id {direction}
     LIMIT $2::integer
"""
# Each row by its key: under the policy, the planner would scan a tenant's whole index for an array.
_BY_ID: Final = """
    SELECT listed.id, {column} AS key, {size_bytes} AS size_bytes
      FROM unnest($1::uuid[]) AS asked (id),
           LATERAL (SELECT * FROM {table} AS one WHERE one.id = asked.id OFFSET 0) AS listed
     WHERE {condition}
     ORDER BY {column} {direction}, listed.id {direction}
     LIMIT $2::integer
"""


def begun(question: Question) -> tuple[str, tuple[object, ...]]:
    """Return the condition that a row follows the previous page; its parameters are $4 and $5."""
    condition = _ANY if question.with_deleted else _STANDING
    if question.after is None:
        return condition, ()
    by, beyond = question.order.field, question.order.beyond
    after = _AFTER.format(column=by.column, beyond=beyond, type=by.sql_type)
    return condition + after, question.after


def statement(
    listed: Listed, question: Question, *, among_ids: bool = False, walked: int = 0
) -> tuple[str, tuple[object, ...]]:
    """Build the statement of a question; returns its text and its parameters from $4 on.

    $1 is the caller's tenant, or the ids to choose from; $2 the limit; $3 whether rows are read
    whole. `walked` limits how many of the tenant's own rows are scanned.
    """
    order = question.order
    standing, parameters = begun(question)
    filtered = _ANY
    if question.expression is not None:
        compiled = compile_filter(question.expression, listed.fields, first=4 + len(parameters))
        filtered = compiled.sql
        parameters += compiled.parameters
    shape = _BY_FIRST if walked else _BY_ID if among_ids else _BY_ORDER
    text = shape.format(
        table=listed.table,
        shown=listed.shown,
        standing=_STANDING,
        size_bytes=listed.size_bytes,
        column=order.field.column,
        direction=order.direction,
        condition=f"{standing} AND {filtered}",
        begun=standing,
        filter=filtered,
        walked=walked,
    )
    return text, parameters


async def find(
    db: Db, listed: Listed, question: Question, *, tenant_id: UUID, ids: Sequence[UUID] | None
) -> list[Found]:
    """Find a page of what the caller may read and the filter matches, in order.

    With `ids`, only among these.
    """
    text, parameters = statement(listed, question, among_ids=ids is not None)
    whose = tenant_id if ids is None else ids
    rows = await db.fetch(text, whose, question.limit, question.full, *parameters)
    return [Found(row["id"], row["key"], row["size_bytes"]) for row in rows]


async def find_near(
    db: Db, listed: Listed, question: Question, *, tenant_id: UUID, walked: int
) -> list[Found]:
    """Find a page of frequent matches among the first `walked` of the tenant's own rows.

    An incomplete result is not a page: its length only shows the hit rate of the filter.
    """
    text, parameters = statement(listed, question, walked=walked)
    rows = await db.fetch(text, tenant_id, question.limit, question.full, *parameters)
    return [Found(row["id"], row["key"], row["size_bytes"]) for row in rows]
