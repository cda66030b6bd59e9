"""Answers that fit one message: pages are cut short, what could never be sent is not stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from google.protobuf.message import Message

from services.kit.errors import InvalidArgument
from services.kit.rpc.server import MESSAGE_BYTES_MAX

M = TypeVar("M", bound=Message)
T = TypeVar("T")

# Room for the rest of the answer around what is measured.
_ANSWER_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 64 * 1024


async def fitting(
    found: Iterable[T], encode: Callable[[T], M], *, limit: int
) -> tuple[list[M], T | None]:
    """Encode one page: at most `limit`, and no more than fit, yet at least one.

    With it comes the last that is shown, if more follow. What is not shown is never read from its
    row, and other calls come in between: one of these may take some tens of milliseconds.
    """
    taken: list[M] = []
    last: T | None = None
    room = _ANSWER_BYTES_MAX
    for each in found:
        if len(taken) == limit:
            return taken, last
        message = encode(each)
        room -= message.ByteSize() + 8
        if taken and room < 0:
            return taken, last
        taken.append(message)
        last = each
        await asyncio.sleep(0)
    return taken, None


def check_answerable(answer: Message, *, what: str, hint: str) -> None:
    """Refuse what could be stored and then never be read back whole."""
    if answer.ByteSize() > _ANSWER_BYTES_MAX:
        raise InvalidArgument(
            f"{what.upper()}_TOO_LARGE",
            f"the {what}, with its types, has more than {_ANSWER_BYTES_MAX} bytes; {hint}",
        )
