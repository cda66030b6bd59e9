"""Exceptions of user code: conversion between messages and the JSON text in the tables."""

from __future__ import annotations

from typing import Any, Final

import orjson
from qflow.failure.v1 import failure_pb2

_KINDS: Final = {
    failure_pb2.CAUSE_KIND_CAUSE: "cause",
    failure_pb2.CAUSE_KIND_CONTEXT: "context",
    failure_pb2.CAUSE_KIND_MEMBER: "member",
}
_KINDS_TO_PB: Final = {name: value for value, name in _KINDS.items()}
_CAUSES_MAX: Final = 16
_EXCEPTION_CHARS_MAX: Final = 255
_MESSAGE_CHARS_MAX: Final = 4096


def detail_of(message: Any) -> str | None:
    """Return the JSON text of a message's `exception_type` and `causes`; None if it has neither.

    The sender may be an older or a broken runner, so each part is cut to its limit.
    """
    if not message.exception_type and not message.causes:
        return None
    causes = [
        {
            "kind": _KINDS.get(each.kind, "cause"),
            "exception": _storable(each.exception_type[:_EXCEPTION_CHARS_MAX]),
            "message": _storable(each.message[:_MESSAGE_CHARS_MAX]),
        }
        for each in message.causes[:_CAUSES_MAX]
    ]
    exception = _storable(message.exception_type[:_EXCEPTION_CHARS_MAX])
    return orjson.dumps({"exception": exception, "causes": causes}).decode()


def add_detail(message: Any, detail: str | None) -> None:
    """Set a message's `exception_type`, `causes` and `edge` from the stored text.

    That is the text of `detail_of`, to which the engine may have added the edge.
    """
    if detail is None:
        return
    stored = orjson.loads(detail)
    if edge := stored.get("edge"):
        message.edge.source_node_id = edge["source"]
        message.edge.source_output = edge["source_output"]
        message.edge.target_node_id = edge["target"]
        message.edge.target_input = edge["target_input"]
        message.edge.conversion = edge["conversion"]
    message.exception_type = stored["exception"]
    for each in stored["causes"]:
        message.causes.add(
            kind=_KINDS_TO_PB[each["kind"]],
            exception_type=each["exception"],
            message=each["message"],
        )


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")
