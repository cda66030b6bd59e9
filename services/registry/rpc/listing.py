"""Serve a page of nodes or workflows, by filter, order, view and page token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar
from uuid import UUID

from google.protobuf.message import Message

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc.pages import Pages, Thing
from services.registry.usecases import lists
from services.registry.usecases.lists import Listed

M = TypeVar("M", bound=Message)


class Searched(Protocol):
    """The pools for a search."""

    @property
    def pool(self) -> Pool:
        """The pool under the callers' login."""
        ...

    @property
    def search(self) -> Pool:
        """The pool under a login that can use the search indexes of all tenants."""
        ...


async def listed(
    deps: Searched,
    request: Any,
    kind: str,
    of: Listed,
    *,
    full: bool,
    read: Callable[[list[UUID]], Awaitable[Iterable[Thing]]],
    encode: Callable[[Thing], M],
) -> tuple[list[M], str]:
    """Find, read and encode a page; returns it with the token of the next one.

    `full` says whether rows are shown whole, `read` returns the rows of a slice of ids.
    """
    asked = lists.asked_from(of, filter_text=request.filter, order_by=request.order_by)
    deleted = request.show_deleted
    pages = Pages(kind, request, request.view, request.filter, request.order_by, deleted)
    found = await lists.find(
        deps.pool,
        deps.search,
        current_caller(),
        asked,
        after=pages.after_key(asked.order.field.key_type),
        limit=pages.limit,
        full=full,
        with_deleted=deleted,
    )
    return await pages.cut_found(found, read=read, encode=encode)
