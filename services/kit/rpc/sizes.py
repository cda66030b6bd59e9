"""Size limits of responses: lists are cut so that they fit into one message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from google.protobuf.message import Message

from services.kit.rpc.listener import MESSAGE_BYTES_MAX

M = TypeVar("M", bound=Message)

# Leaves room for the rest of the response.
ANSWER_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 64 * 1024
# The overhead of a message within another.
FRAME_BYTES: Final = 8


def in_parts(messages: Iterable[M], *, limit: int, bytes_max: int) -> Iterator[list[M]]:
    """Split messages into parts of at most `limit` messages and `bytes_max` bytes.

    Yields at least one part, which may be empty. A message over `bytes_max` is a part by itself.
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
