"""A page of a list, asked for and answered: where it begins, what fits, where the next begins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar
from uuid import UUID

from google.protobuf.message import Message

from services.kit import page
from services.kit.caller import current_caller
from services.kit.rpc.sizes import ANSWER_BYTES_MAX, FRAME_BYTES

M = TypeVar("M", bound=Message)
Row = TypeVar("Row")

# What is encoded without a pause: a millisecond or two.
_BYTES_AT_ONCE = 16 * 1024


class Identified(Protocol):
    """What has an id."""

    @property
    def id(self) -> UUID:
        """Its id."""
        ...


Thing = TypeVar("Thing", bound=Identified)


def moment_from(key: Sequence[page.PageKey] | None) -> tuple[datetime, UUID] | None:
    """Read the last row shown of a list by time and id; None for the first page."""
    match key:
        case None:
            return None
        case [datetime() as moment, UUID() as row_id]:
            return moment, row_id
        case _:
            raise page.token_refused()


class Pages:
    """The list `kind` as this caller asked for it, with `page_size` and `page_token` of a request.

    `asked` is whatever else the request says: a token goes on with that alone, for that caller.
    """

    def __init__(self, kind: str, request: Any, *asked: object) -> None:
        self._kind = kind
        self._digest = page.filter_digest(*asked)
        self._caller = current_caller()
        self._size = page.page_size(request.page_size)
        self._after = page.decode_token(request.page_token, kind, self._digest, self._caller)

    @property
    def limit(self) -> int:
        """How many rows to read: one more than is shown tells that there is a next page."""
        return self._size + 1

    def after_moment(self) -> tuple[datetime, UUID] | None:
        """Give the last row shown of a list by time and id; None for the first page."""
        return moment_from(self._after)

    def after_key(self, key_type: type[str | datetime]) -> tuple[str | datetime, UUID] | None:
        """Give the last row shown of a list by a field and id; None for the first page."""
        match self._after:
            case None:
                return None
            case [str() | datetime() as key, UUID() as row_id] if isinstance(key, key_type):
                return key, row_id
            case _:
                raise page.token_refused()

    def after_name(self) -> str | None:
        """Give the last name shown of a list by names that are unique; None for the first page."""
        match self._after:
            case None:
                return None
            case [str() as name]:
                return name
            case _:
                raise page.token_refused()

    def after_place(self) -> int:
        """Give how many rows were shown of a list that has its rows in fixed places."""
        match self._after:
            case None:
                return 0
            case [int() as place]:
                return place
            case _:
                raise page.token_refused()

    def after_two(self) -> tuple[int, int]:
        """Give the last row shown of a list by two numbers; zeros for the first page."""
        match self._after:
            case None:
                return 0, 0
            case [int() as first, int() as second]:
                return first, second
            case _:
                raise page.token_refused()

    def after_values(self, *types: type) -> tuple[Any, ...] | None:
        """Give the last row shown by values of these types; None for the first page."""
        if self._after is None:
            return None
        if [type(each) for each in self._after] != [*types]:
            raise page.token_refused()
        return tuple(self._after)

    def token_after(self, key: Sequence[page.PageKey]) -> str:
        """Give the token of the page after the row with this key."""
        return page.encode_token(self._kind, self._digest, self._caller, key)

    async def cut(
        self,
        rows: Iterable[Row],
        *,
        encode: Callable[[Row], M],
        key: Callable[[Row], Sequence[page.PageKey]],
    ) -> tuple[list[M], str]:
        """Encode the rows that fit, and give the token of the page after the last of them.

        A row that is not shown is not taken, and other calls come in between: one of them may cost
        some tens of milliseconds.
        """
        shown: list[M] = []
        room = ANSWER_BYTES_MAX
        last: Row | None = None
        for row in rows:
            message = encode(row) if len(shown) < self._size else None
            room -= message.ByteSize() + FRAME_BYTES if message is not None else 0
            if last is not None and (message is None or room < 0):
                token = page.encode_token(self._kind, self._digest, self._caller, key(last))
                return shown, token
            assert message is not None, "a page shows one row at least"
            shown.append(message)
            last = row
            await asyncio.sleep(0)
        return shown, ""

    async def cut_found(
        self,
        found: Sequence[page.Found],
        *,
        read: Callable[[list[UUID]], Awaitable[Iterable[Thing]]],
        encode: Callable[[Thing], M],
    ) -> tuple[list[M], str]:
        """Read found rows a slice at a time until the page is full, and encode those that fit.

        So a page of large rows holds little more in memory than it shows. `read` gives them in
        the order of their ids, without those that are gone meanwhile.
        """
        shown: list[M] = []
        room = ANSWER_BYTES_MAX
        last = found[0] if found else None
        pause_at = room - _BYTES_AT_ONCE
        for part in page.in_slices(found[: self._size]):
            places = {each.id: each for each in part}
            for row in await read([*places]):
                message = encode(row)
                room -= message.ByteSize() + FRAME_BYTES
                if shown and room < 0:
                    return shown, self._token_after(last)
                shown.append(message)
                last = places[row.id]
                if room < pause_at:  # others come in between
                    pause_at = room - _BYTES_AT_ONCE
                    await asyncio.sleep(0)
        more = found[self._size - 1] if len(found) > self._size else None
        return shown, self._token_after(more)

    def _token_after(self, last: page.Found | None) -> str:
        if last is None:
            return ""
        return page.encode_token(self._kind, self._digest, self._caller, (last.key, last.id))
