"""How rows of a list are found: by filter and order, as ids, before anything of them is read.

The one place of the registry where a statement is put together. What a list can be asked is no
fixed set (every filter is another condition, every order another key), and a statement that tested
for all of it with parameters could use no index. So the text is made of constants alone: those
below, and the conditions of the field tables; a caller's words choose among them and are
parameters. `tests/contracts/test_sql.py` prepares every field, operator and order.
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

# So many of the tenant's own rows are looked at before anything is looked up: what one row in ten
# has fills a page within them, and what is rare pays two milliseconds more. Where they promise to
# fill it within half of `WALKED_MAX`, up to that many are looked at: nothing is gained by looking
# up what is so common, and what they promise is not always so.
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
    """A table that is listed: what may be asked of it, and the parts of its statements."""

    table: LiteralString
    shown: LiteralString  # which rows every tenant may read, as the policy and the indexes have it
    size_bytes: LiteralString  # about how large a row is once read; $3 says whether whole
    fields: FieldTable
    orders: Sequence[OrderField]


# A column of JSON is told by its size on disk, compressed: about an eighth of what it becomes.
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
    """What a list is asked: a filter, an order, the last row of the page before, how many."""

    expression: Expression | None
    order: Order
    after: tuple[str | datetime, UUID] | None
    limit: int
    full: bool  # whether the rows will be read whole
    with_deleted: bool = False  # the tenant's own that were deleted too


_STANDING: Final = "listed.deleted_at IS NULL"
_ANY: Final = "true"
_AFTER: Final = " AND ({column}, listed.id) {beyond} ($4::{type}, $5::uuid)"

# The rows of the caller's tenant and those shown to everybody have an index each: two pages that
# are merged, where one condition for both would walk all tenants' rows.
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
# A page of what is common: where the first rows of the tenant's own fill it, it is whole, since all
# that is shown to everybody is looked at up to there as well. Otherwise it gives what is there of
# the tenant's own: how many tell how far a page would be.
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
# Each row by its key: under the policy the planner would walk a tenant's whole index for an array.
_BY_ID: Final = """
    SELECT listed.id, {column} AS key, {size_bytes} AS size_bytes
      FROM unnest($1::uuid[]) AS asked (id),
           LATERAL (SELECT * FROM {table} AS one WHERE one.id = asked.id OFFSET 0) AS listed
     WHERE {condition}
     ORDER BY {column} {direction}, listed.id {direction}
     LIMIT $2::integer
"""


def begun(question: Question) -> tuple[str, tuple[object, ...]]:
    """Give the condition that a row stands after the page before; its parameters are $4 and $5."""
    condition = _ANY if question.with_deleted else _STANDING
    if question.after is None:
        return condition, ()
    by, beyond = question.order.field, question.order.beyond
    after = _AFTER.format(column=by.column, beyond=beyond, type=by.sql_type)
    return condition + after, question.after


def statement(
    listed: Listed, question: Question, *, among_ids: bool = False, walked: int = 0
) -> tuple[str, tuple[object, ...]]:
    """Put the statement of a question together; gives its text and its parameters from $4 on.

    $1 is the caller's tenant, or the ids to choose from; $2 the limit; $3 whether rows are whole.
    With `walked` it looks at so many rows of the tenant's own, and no further.
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
    """Find a page of what the caller may read and the filter lets through, in its order.

    With `ids`, only these are looked at.
    """
    text, parameters = statement(listed, question, among_ids=ids is not None)
    whose = tenant_id if ids is None else ids
    rows = await db.fetch(text, whose, question.limit, question.full, *parameters)
    return [Found(row["id"], row["key"], row["size_bytes"]) for row in rows]


async def find_near(
    db: Db, listed: Listed, question: Question, *, tenant_id: UUID, walked: int
) -> list[Found]:
    """Find a page of what is common among so many rows of the tenant's own.

    A page that is not full says how much of these rows the filter lets through, and is no page.
    """
    text, parameters = statement(listed, question, walked=walked)
    rows = await db.fetch(text, tenant_id, question.limit, question.full, *parameters)
    return [Found(row["id"], row["key"], row["size_bytes"]) for row in rows]
