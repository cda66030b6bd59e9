"""Candidate ids for a search, from an index on text or tags, before any row is read.

Candidates may not match: the caller's own statement decides about each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Pool, connection
from services.registry.storage.lists import Listed, Question, begun

# With more candidates, walking the list in its own order is faster, since matches are frequent.
# Both ways cost the same at about a thousand of 100,000 rows.
CANDIDATES_MAX: Final = 1_000
# The index of a search holds trigrams; a second one holds single letters and pairs.
_PART_CHARS_MIN: Final = 3
_BY_THREES: Final = "search_grams"
_SHORT: Final = "search_letters"

# All ids come as one array, or as null if there are more than $3: what would be thrown away is
# neither sorted nor sent. They are in the list's order, so that the first ones usually fill a page.
#
# By text: run under the engine's login, whose policy hides nothing and so does not keep any
# operator from using the index. See migrations 0011 and 0036.
_BY_TEXT: Final = """
    WITH candidates AS MATERIALIZED (
        (SELECT listed.id, {column} AS key
           FROM {table} AS listed
          WHERE {letters}(listed.tenant_id,
                          listed.name || E'\\n' || COALESCE(listed.description, ''))
                @> ARRAY(SELECT unnest({letters}($1::uuid, part))
                           FROM unnest($2::text[]) AS part)
            AND {begun}
          LIMIT $3::integer + 1)
        UNION
        (SELECT listed.id, {column} AS key
           FROM {table} AS listed
          WHERE {shown}
            AND {letters}('00000000-0000-0000-0000-000000000000'::uuid,
                          listed.name || E'\\n' || COALESCE(listed.description, ''))
                @> ARRAY(SELECT unnest({letters}('00000000-0000-0000-0000-000000000000', part))
                           FROM unnest($2::text[]) AS part)
            AND {begun}
          LIMIT $3::integer + 1))
    SELECT CASE WHEN (SELECT count(*) FROM candidates) <= $3
                THEN (SELECT COALESCE(
                                 array_agg(id ORDER BY key {direction}, id {direction}), '{{}}')
                        FROM candidates)
           END
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
BY_TAG: Final = {"python_nodes": _NODES_BY_TAG, "workflows": _WORKFLOWS_BY_TAG}


def by_text_statement(
    listed: Listed, question: Question, *, short: bool
) -> tuple[str, tuple[object, ...]]:
    """Build the statement that finds rows by text; returns its text and its parameters from $4 on.

    $1 is the caller's tenant, $2 the texts, $3 the highest number of ids. `short` means that the
    texts have one or two letters.
    """
    standing, parameters = begun(question)
    text = _BY_TEXT.format(
        table=listed.table,
        shown=listed.shown,
        letters=_SHORT if short else _BY_THREES,
        column=question.order.field.column,
        direction=question.order.direction,
        begun=standing,
    )
    return text, parameters


async def ids_by_text(
    pool: Pool, listed: Listed, question: Question, texts: Sequence[str], *, tenant_id: UUID
) -> list[UUID] | None:
    """Find ids that may contain all texts, in the question's order; None if there are too many.

    Rows contain the texts' letters, perhaps in another order. If any text has three letters,
    shorter ones are left to the statement that reads the rows.
    """
    long = [text for text in texts if len(text) >= _PART_CHARS_MIN]
    statement, parameters = by_text_statement(listed, question, short=not long)
    async with connection(pool) as db:
        ids: list[UUID] | None = await db.fetchval(
            statement, tenant_id, long or texts, CANDIDATES_MAX, *parameters
        )
    return ids


async def ids_by_tag(db: Db, listed: Listed, name: str, *, tenant_id: UUID) -> list[UUID] | None:
    """Find ids with a tag of the caller's tenant, unordered; None if there are too many."""
    ids: list[UUID] | None = await db.fetchval(
        BY_TAG[listed.table], tenant_id, name, CANDIDATES_MAX
    )
    return ids
