"""Lists: parse a filter and an order, and find the matching page of ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.filter.fields import compile_filter, required
from services.kit.filter.language import Comparison, Expression, Word, parse
from services.kit.filter.order import Order, order_from
from services.kit.page import Found
from services.kit.pg import Db, Pool, as_caller
from services.registry.storage import candidates, lists
from services.registry.storage.lists import NEWEST_FIRST, NODES, WORKFLOWS, Listed, Question

__all__ = ["NODES", "WORKFLOWS", "Asked", "Listed", "asked_from", "find"]

# The first candidates in the list's order are read first, since nearly all of them match.
_CANDIDATES_PER_ROW: Final = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """A list with its validated filter and order."""

    listed: Listed
    expression: Expression | None
    order: Order


def asked_from(listed: Listed, *, filter_text: str, order_by: str) -> Asked:
    """Parse a filter and an order; raises InvalidArgument for what this list does not support."""
    expression = parse(filter_text)
    if expression is not None:
        compile_filter(expression, listed.fields, first=1)
    return Asked(listed, expression, order_from(order_by, listed.orders, default=NEWEST_FIRST))


async def find(
    pool: Pool,
    search: Pool,
    caller: Caller,
    asked: Asked,
    *,
    after: tuple[str | datetime, UUID] | None,
    limit: int,
    full: bool,
    with_deleted: bool = False,
) -> list[Found]:
    """Find a page of what the caller may read; `full` says whether rows will be read whole.

    Deleted rows are listed only from the caller's own tenant.

    If the filter requires a text or a tag, candidates come from its index, unless the list's first
    rows fill the page. If there are too many candidates, the list is walked in its order instead,
    which then fills a page soon.
    """
    question = Question(
        expression=asked.expression,
        order=asked.order,
        after=after,
        limit=limit,
        full=full,
        with_deleted=with_deleted,
    )
    terms = required(asked.expression)
    # Filter values differ widely in selectivity, so no generic plan suits them all.
    async with as_caller(pool, caller, plans_by_value=asked.expression is not None) as db:
        tenant_id = caller.tenant_id
        ids = await _by_tag(db, caller, asked.listed, terms)
        texts = [text for text in map(_searched, terms) if text]
        if ids is None and texts:
            page = await _near(db, asked.listed, question, tenant_id)
            if page is not None:
                return page
            ids = await candidates.ids_by_text(
                search, asked.listed, question, texts, tenant_id=tenant_id
            )
            first = _CANDIDATES_PER_ROW * limit
            if ids is not None and len(ids) > first:
                page = await lists.find(
                    db, asked.listed, question, tenant_id=tenant_id, ids=ids[:first]
                )
                if len(page) == limit:
                    return page
        return await lists.find(db, asked.listed, question, tenant_id=tenant_id, ids=ids)


async def _near(db: Db, listed: Listed, question: Question, tenant_id: UUID) -> list[Found] | None:
    """Find a page among the list's first rows, and further ones if those matched often enough.

    Returns None if the page is not full. For a common text this is faster than its index.
    """
    first = lists.WALKED_FIRST
    page = await lists.find_near(db, listed, question, tenant_id=tenant_id, walked=first)
    if len(page) < question.limit <= len(page) * (lists.WALKED_MAX // 2 // first):
        page = await lists.find_near(
            db, listed, question, tenant_id=tenant_id, walked=lists.WALKED_MAX
        )
    return page if len(page) == question.limit else None


def _searched(term: Word | Comparison) -> str:
    """Return the text that a row's name or description must contain; empty if none."""
    match term:
        case Word(text) | Comparison("name" | "description", ":" | "=", text):
            return text
        case _:
            return ""


async def _by_tag(
    db: Db, caller: Caller, listed: Listed, terms: Sequence[Word | Comparison]
) -> list[UUID] | None:
    for term in terms:
        match term:
            case Comparison("tags", ":", name):
                ids = await candidates.ids_by_tag(db, listed, name, tenant_id=caller.tenant_id)
                if ids is not None:
                    return ids
            case _:
                continue
    return None
