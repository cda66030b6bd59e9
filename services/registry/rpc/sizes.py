"""Reject definitions whose response would exceed the size of a message."""

from __future__ import annotations

from google.protobuf.message import Message

from services.kit.errors import InvalidArgument
from services.kit.rpc.sizes import ANSWER_BYTES_MAX


def check_answerable(answer: Message, *, what: str, hint: str) -> None:
    """Raise InvalidArgument for what could be stored but never be read back whole."""
    if answer.ByteSize() > ANSWER_BYTES_MAX:
        raise InvalidArgument(
            f"{what.upper()}_TOO_LARGE",
            f"the {what}, with its types, has more than {ANSWER_BYTES_MAX} bytes; {hint}",
        )
