"""Pages of a list: decode the page token, limit a page by rows and bytes, encode the next token."""

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

# How much is encoded before other calls get a turn: a millisecond or two.
_BYTES_AT_ONCE = 16 * 1024


class Identified(Protocol):
    """Anything with an id."""

    @property
    def id(self) -> UUID:
        """Its id."""
        ...


Thing = TypeVar("Thing", bound=Identified)


def moment_from(key: Sequence[page.PageKey] | None) -> tuple[datetime, UUID] | None:
    """Return the time and id of the last row shown; None for the first page."""
    match key:
        case None:
            return None
        case [datetime() as moment, UUID() as row_id]:
            return moment, row_id
        case _:
            raise page.token_refused()


class Pages:
    """The list `kind` as this caller asked for it, with `page_size` and `page_token` of a request.

    `asked` is the rest of the request: a token is only valid with the same, for the same caller.
    """

    def __init__(self, kind: str, request: Any, *asked: object) -> None:
        self._kind = kind
        self._digest = page.filter_digest(*asked)
        self._caller = current_caller()
        self._size = page.page_size(request.page_size)
        self._after = page.decode_token(request.page_token, kind, self._digest, self._caller)

    @property
    def limit(self) -> int:
        """How many rows to read: one more than a page shows, to detect a next page."""
        return self._size + 1

    def after_moment(self) -> tuple[datetime, UUID] | None:
        """Return the time and id of the last row shown; None for the first page."""
        return moment_from(self._after)

    def after_key(self, key_type: type[str | datetime]) -> tuple[str | datetime, UUID] | None:
        """Return the sort key and id of the last row shown; None for the first page."""
        match self._after:
            case None:
                return None
            case [str() | datetime() as key, UUID() as row_id] if isinstance(key, key_type):
                return key, row_id
            case _:
                raise page.token_refused()

    def after_name(self) -> str | None:
        """Return the last name shown of a list by unique names; None for the first page."""
        match self._after:
            case None:
                return None
            case [str() as name]:
                return name
            case _:
                raise page.token_refused()

    def after_place(self) -> int:
        """Return the number of rows shown so far of a list whose rows have fixed positions."""
        match self._after:
            case None:
                return 0
            case [int() as place]:
                return place
            case _:
                raise page.token_refused()

    def after_two(self) -> tuple[int, int]:
        """Return the two numbers that identify the last row shown; zeros for the first page."""
        match self._after:
            case None:
                return 0, 0
            case [int() as first, int() as second]:
                return first, second
            case _:
                raise page.token_refused()

    def after_values(self, *types: type) -> tuple[Any, ...] | None:
        """Return the last row's key, of values of these types; None for the first page."""
        if self._after is None:
            return None
        if [type(each) for each in self._after] != [*types]:
            raise page.token_refused()
        return tuple(self._after)

    def token_after(self, key: Sequence[page.PageKey]) -> str:
        """Return the token of the page after the row with this key."""
        return page.encode_token(self._kind, self._digest, self._caller, key)

    async def cut(
        self,
        rows: Iterable[Row],
        *,
        encode: Callable[[Row], M],
        key: Callable[[Row], Sequence[page.PageKey]],
    ) -> tuple[list[M], str]:
        """Encode the rows that fit; return them with the token of the next page, "" for none.

        Reads no further row than needed, and yields to other calls after each, since encoding one
        may take tens of milliseconds.
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
        """Read found rows in slices until the page is full; return the encoded ones and the token.

        So a page of large rows holds little more in memory than it shows. `read` returns the rows
        the order of their ids, without those that were deleted meanwhile.
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
                if room < pause_at:  # yield to other calls
                    pause_at = room - _BYTES_AT_ONCE
                    await asyncio.sleep(0)
        more = found[self._size - 1] if len(found) > self._size else None
        return shown, self._token_after(more)

    def _token_after(self, last: page.Found | None) -> str:
        if last is None:
            return ""
        return page.encode_token(self._kind, self._digest, self._caller, (last.key, last.id))
