"""Answers that fit one message: pages are cut short, what could never be sent is not stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from google.protobuf.message import Message

from services.kit.errors import InvalidArgument
from services.kit.rpc.server import MESSAGE_BYTES_MAX

M = TypeVar("M", bound=Message)

# Room for the rest of the answer around what is measured.
_ANSWER_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 64 * 1024


def fitting(messages: Iterable[M], *, limit: int) -> list[M]:
    """Take messages for one page: at most `limit`, and no more than fit; at least one."""
    taken: list[M] = []
    room = _ANSWER_BYTES_MAX
    for message in messages:
        room -= message.ByteSize() + 8
        if len(taken) == limit or (taken and room < 0):
            break
        taken.append(message)
    return taken


def check_answerable(answer: Message) -> None:
    """Refuse what could be stored and then never be read back whole."""
    if answer.ByteSize() > _ANSWER_BYTES_MAX:
        raise InvalidArgument(
            "DEFINITION_TOO_LARGE",
            f"the definition, with its types, has more than {_ANSWER_BYTES_MAX} bytes; "
            "use shorter ids, fewer edges or smaller literals",
        )
