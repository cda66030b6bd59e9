"""The innermost stage: a servicer only ever sees messages that keep the contract's rules."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any, Final

import protovalidate
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from services.kit.errors import DeadlineExceeded, FieldViolation, InvalidArgument
from services.kit.rpc.call import Call, Handle, Method, Received

_VANISHED_S: Final = 0.001


def reader(parse: Callable[[bytes], Any]) -> Callable[[bytes], Received]:
    """Wrap a deserialiser: grpc would answer UNKNOWN, with the parser's text, before any stage."""

    def read(raw: bytes) -> Received:
        try:
            return Received(parse(raw), b"\0" in raw)
        except (DecodeError, UnicodeDecodeError, RecursionError, ValueError):
            return Received(None, has_nul=False)

    return read


def stage(inner: Handle, method: Method) -> Handle:
    """Give the servicer plain messages, each checked; refuse the first that is wrong."""
    check = _checker(method)

    async def handle_one(call: Call, request: Received) -> Any:
        return await inner(call, check(request))

    async def handle_stream(call: Call, request: AsyncIterator[Received]) -> Any:
        return await inner(call, _checked(request, check, _idle_s(method)))

    return handle_stream if method.requests_stream else handle_one


def _idle_s(method: Method) -> float | None:
    """Return how long an upload may send nothing; a conversation may be silent while it lasts."""
    return method.limits.upload_idle_s if method.public and not method.responses_stream else None


async def _checked(
    requests: AsyncIterator[Received], check: Callable[[Received], Any], idle_s: float | None
) -> AsyncIterator[Any]:
    while True:
        scope = asyncio.timeout(idle_s)
        try:
            async with scope:
                received = await anext(requests)
        except StopAsyncIteration:
            # For a moment a client that vanished looks like one that is done sending: grpc tells
            # of the end of messages first, and cancels this task when it learns of the rest.
            await asyncio.sleep(_VANISHED_S)
            return
        except TimeoutError:
            if not scope.expired():
                raise
            raise DeadlineExceeded(
                "UPLOAD_IDLE", f"nothing was sent for {idle_s:g} s; send faster or half-close"
            ) from None
        yield check(received)


def _checker(method: Method) -> Callable[[Received], Any]:
    name = method.request.full_name
    # Streams between services carry the hot path, and their senders are trusted by token:
    # their messages are read safely, but not searched.
    searched = method.rule is not None and (method.public or not method.streams)
    if searched:  # a rule that cannot be compiled must stop the start, not a call
        protovalidate.collect_violations(GetMessageClass(method.request)())
    has_enums = _reaches(method.request, FieldDescriptor.TYPE_ENUM)

    def check(received: Received) -> Any:
        if received.message is None:
            raise InvalidArgument(
                "MALFORMED_REQUEST",
                f"the bytes are no {name}: cut off, nested too deep, or text that is not UTF-8",
                message_type=name,
            )
        if searched:
            faults = [*_rule_faults(received.message)]
            if received.has_nul or has_enums:
                faults += _content_faults(received.message, "")
            if faults:
                raise InvalidArgument("INVALID_REQUEST", _summary(faults), fields=faults)
        return received.message

    return check


def _rule_faults(message: Message) -> Iterator[FieldViolation]:
    """Find breaches of the rules that the contract states as `buf.validate` options."""
    for violation in protovalidate.collect_violations(message):
        path = _path(violation.proto.field)
        yield FieldViolation(path, violation.proto.message, _reason(violation.proto.rule_id))


def _path(path: Any) -> str:
    text = ""
    for element in path.elements:
        text += f".{element.field_name}" if text else element.field_name
        subscript = element.subscript
        if subscript is not None:
            text += f"[{subscript.value!r}]".replace("'", '"')
    return text


def _reason(rule_id: str) -> str:
    return rule_id.upper().replace(".", "_").replace("-", "_")


def _content_faults(message: Message, path: str) -> Iterator[FieldViolation]:
    """Find what no rule says once for all: NUL in a text, a number that names no enum value."""
    for field, value in message.ListFields():
        for place, kind, item in _items(field, value, f"{path}{field.name}"):
            if isinstance(item, Message):
                yield from _content_faults(item, f"{place}.")
            elif isinstance(item, str):
                if "\0" in item:
                    yield FieldViolation(place, "must not contain NUL characters", "NUL")
            elif kind.enum_type is not None and item not in kind.enum_type.values_by_number:
                description = f"{item} is no value of {kind.enum_type.name}"
                yield FieldViolation(place, description, "ENUM_UNKNOWN")


def _items(
    field: FieldDescriptor, value: Any, path: str
) -> Iterator[tuple[str, FieldDescriptor, Any]]:
    """Give each single value of a field with its path and the field that says its type."""
    if not field.is_repeated:
        yield path, field, value
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        key_field, value_field = field.message_type.fields
        for key in value:
            place = f"{path}[{json.dumps(key)}]"
            yield place, key_field, key
            yield place, value_field, value[key]
    else:
        for index, item in enumerate(value):
            yield f"{path}[{index}]", field, item


@cache
def _reaches(descriptor: Descriptor, kind: int) -> bool:
    """Whether a field of this kind stands in the message or in any message within it."""
    seen: set[str] = set()
    waiting = [descriptor]
    while waiting:
        message = waiting.pop()
        if message.full_name in seen:
            continue
        seen.add(message.full_name)
        if any(field.type == kind for field in message.fields):
            return True
        waiting += [field.message_type for field in message.fields if field.message_type]
    return False


def _summary(faults: list[FieldViolation]) -> str:
    first = faults[0]
    text = f"{first.field}: {first.description}" if first.field else first.description
    return text if len(faults) == 1 else f"{text} (and {len(faults) - 1} more)"
