"""Answers that fit one message: a list is cut by bytes too, wherever it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from google.protobuf.message import Message

from services.kit.rpc.listener import MESSAGE_BYTES_MAX

M = TypeVar("M", bound=Message)

# Room for the rest of the answer around what is measured.
ANSWER_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 64 * 1024
# What frames a message within another.
FRAME_BYTES: Final = 8


def in_parts(messages: Iterable[M], *, limit: int, bytes_max: int) -> Iterator[list[M]]:
    """Cut messages into parts of at most so many and so large; one at least, perhaps empty.

    A part holds one message at least, however large that is.
    """
    part: list[M] = []
    room = bytes_max
    for message in messages:
        size = message.ByteSize() + FRAME_BYTES
        if part and (size > room or len(part) == limit):
            yield part
            part, room = [], bytes_max
        part.append(message)
        room -= size
    yield part
