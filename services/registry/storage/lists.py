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
from services.kit.pg import Db, Pool, connection

# Above so many candidates a search walks the list's own order instead: what is found that often is
# met soon. Of 100,000 rows the two ways cost the same at about two thousand.
CANDIDATES_MAX: Final = 2_000

# So many of the tenant's own rows are looked at before anything is looked up: what one row in ten
# has fills a page within them, and what is rare pays two milliseconds more.
WALKED_MAX: Final = 500

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
    by_text: LiteralString
    by_tag: LiteralString


# Both kinds of candidates come as one array, or as null where they are more than $3: what is
# thrown away need not travel.
#
# By text: run by the engine's login, whose policy hides nothing and so keeps no operator from the
# index. What it gives are ids, and the caller's statement decides about them. See migration 0011.
_NODES_BY_TEXT: Final[LiteralString] = """
    SELECT CASE WHEN count(*) <= $3 THEN COALESCE(array_agg(id), '{}') END
      FROM ((SELECT id FROM python_nodes
              WHERE search_grams(tenant_id, name || E'\\n' || COALESCE(description, ''))
                    @> ARRAY(SELECT unnest(search_grams($1::uuid, part))
                               FROM unnest($2::text[]) AS part)
              LIMIT $3::integer + 1)
            UNION
            (SELECT id FROM python_nodes
              WHERE (is_template OR is_public)
                AND search_grams('00000000-0000-0000-0000-000000000000'::uuid,
                                 name || E'\\n' || COALESCE(description, ''))
                    @> ARRAY(SELECT unnest(
                                 search_grams('00000000-0000-0000-0000-000000000000', part))
                               FROM unnest($2::text[]) AS part)
              LIMIT $3::integer + 1)) AS candidates
"""

_WORKFLOWS_BY_TEXT: Final[LiteralString] = """
    SELECT CASE WHEN count(*) <= $3 THEN COALESCE(array_agg(id), '{}') END
      FROM ((SELECT id FROM workflows
              WHERE search_grams(tenant_id, name || E'\\n' || COALESCE(description, ''))
                    @> ARRAY(SELECT unnest(search_grams($1::uuid, part))
                               FROM unnest($2::text[]) AS part)
              LIMIT $3::integer + 1)
            UNION
            (SELECT id FROM workflows
              WHERE is_template
                AND search_grams('00000000-0000-0000-0000-000000000000'::uuid,
                                 name || E'\\n' || COALESCE(description, ''))
                    @> ARRAY(SELECT unnest(
                                 search_grams('00000000-0000-0000-0000-000000000000', part))
                               FROM unnest($2::text[]) AS part)
              LIMIT $3::integer + 1)) AS candidates
"""

_NODES_BY_TAG: Final[LiteralString] = """
    SELECT CASE WHEN count(*) <= $3 THEN COALESCE(array_agg(id), '{}') END
      FROM (SELECT r.node_id AS id
              FROM python_node_tags t JOIN python_node_tag_relations r ON r.tag_id = t.id
             WHERE t.tenant_id = $1 AND t.name = $2
             LIMIT $3::integer + 1) AS candidates
"""

_WORKFLOWS_BY_TAG: Final[LiteralString] = """
    SELECT CASE WHEN count(*) <= $3 THEN COALESCE(array_agg(id), '{}') END
      FROM (SELECT r.workflow_id AS id
              FROM workflow_tags t JOIN workflow_tag_relations r ON r.tag_id = t.id
             WHERE t.tenant_id = $1 AND t.name = $2
             LIMIT $3::integer + 1) AS candidates
"""

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
    by_text=_NODES_BY_TEXT,
    by_tag=_NODES_BY_TAG,
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
    by_text=_WORKFLOWS_BY_TEXT,
    by_tag=_WORKFLOWS_BY_TAG,
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
# that is shown to everybody is looked at up to there as well. Otherwise it gives nothing.
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
                AND {begun} AND {filter}
              ORDER BY {column} {direction}, listed.id {direction}
              LIMIT $2::integer)) AS found
     WHERE (SELECT count(*) FROM own) = $2::integer
     ORDER BY key {direction}, id {direction}
     LIMIT $2::integer
"""
_BY_ID: Final = """
    SELECT listed.id, {column} AS key, {size_bytes} AS size_bytes
      FROM {table} AS listed
     WHERE listed.id = ANY ($1::uuid[]) AND {condition}
     ORDER BY {column} {direction}, listed.id {direction}
     LIMIT $2::integer
"""


def statement(
    listed: Listed, question: Question, *, among_ids: bool = False, first: bool = False
) -> tuple[str, tuple[object, ...]]:
    """Put the statement of a question together; gives its text and its parameters from $4 on.

    $1 is the caller's tenant, or the ids to choose from; $2 the limit; $3 whether rows are whole.
    With `first` it looks at so many rows of the tenant's own, and no further.
    """
    order = question.order
    begun = _ANY if question.with_deleted else _STANDING
    parameters = tuple[object, ...]()
    if question.after is not None:
        begun += _AFTER.format(
            column=order.field.column, beyond=order.beyond, type=order.field.sql_type
        )
        parameters = question.after
    filtered = _ANY
    if question.expression is not None:
        compiled = compile_filter(question.expression, listed.fields, first=4 + len(parameters))
        filtered = compiled.sql
        parameters += compiled.parameters
    shape = _BY_FIRST if first else _BY_ID if among_ids else _BY_ORDER
    text = shape.format(
        table=listed.table,
        shown=listed.shown,
        standing=_STANDING,
        size_bytes=listed.size_bytes,
        column=order.field.column,
        direction=order.direction,
        condition=f"{begun} AND {filtered}",
        begun=begun,
        filter=filtered,
        walked=WALKED_MAX,
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


async def find_first(db: Db, listed: Listed, question: Question, *, tenant_id: UUID) -> list[Found]:
    """Find a page of what is common; nothing where the first rows do not fill it."""
    text, parameters = statement(listed, question, first=True)
    rows = await db.fetch(text, tenant_id, question.limit, question.full, *parameters)
    return [Found(row["id"], row["key"], row["size_bytes"]) for row in rows]


async def ids_by_text(
    pool: Pool, listed: Listed, parts: Sequence[str], *, tenant_id: UUID
) -> list[UUID] | None:
    """Find what may hold all these parts of three letters or more; None where that is too much.

    These are candidates: their letters are there, perhaps in another order.
    """
    async with connection(pool) as db:
        ids: list[UUID] | None = await db.fetchval(listed.by_text, tenant_id, parts, CANDIDATES_MAX)
    return ids


async def ids_by_tag(db: Db, listed: Listed, name: str, *, tenant_id: UUID) -> list[UUID] | None:
    """Find what the caller's tenant has tied to a tag; None where that is too much."""
    ids: list[UUID] | None = await db.fetchval(listed.by_tag, tenant_id, name, CANDIDATES_MAX)
    return ids
