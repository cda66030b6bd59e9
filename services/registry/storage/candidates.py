"""What a search looks up before it reads a row: ids that may fulfil it, of an index of its own.

They are candidates: whoever asks lets the caller's own statement decide about each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Pool, connection
from services.registry.storage.lists import Listed, Question, begun

# Above so many a search walks the list's own order instead: what is found that often is met soon.
# Of 100,000 rows the two ways cost the same at about a thousand.
CANDIDATES_MAX: Final = 1_000
# The index of a search holds letters by threes; another one holds them alone and by twos.
_PART_CHARS_MIN: Final = 3
_BY_THREES: Final = "search_grams"
_SHORT: Final = "search_letters"

# All come as one array, or as null where they are more than $3: what is thrown away is neither
# sorted nor sent. They come in the list's order, so that the first of them mostly fill a page.
#
# By text: run by the engine's login, whose policy hides nothing and so keeps no operator from the
# index. See migrations 0011 and 0036.
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
    """Put together what looks texts up; gives its text and its parameters from $4 on.

    $1 is the caller's tenant, $2 the texts, $3 how many ids are not too many. With `short` the
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
    """Find what may hold all these texts, in the order of the question; None where it is too much.

    Their letters are there, perhaps in another order. Where any text has three letters, shorter
    ones are left to whoever reads the rows.
    """
    long = [text for text in texts if len(text) >= _PART_CHARS_MIN]
    statement, parameters = by_text_statement(listed, question, short=not long)
    async with connection(pool) as db:
        ids: list[UUID] | None = await db.fetchval(
            statement, tenant_id, long or texts, CANDIDATES_MAX, *parameters
        )
    return ids


async def ids_by_tag(db: Db, listed: Listed, name: str, *, tenant_id: UUID) -> list[UUID] | None:
    """Find what the caller's tenant has tied to a tag, in no order; None where that is too much."""
    ids: list[UUID] | None = await db.fetchval(
        BY_TAG[listed.table], tenant_id, name, CANDIDATES_MAX
    )
    return ids
