"""The innermost stage: a servicer only ever sees messages that keep the contract's rules."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any, Final

import protovalidate
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from services.kit.errors import DeadlineExceeded, InvalidArgument
from services.kit.rpc import faults
from services.kit.rpc.call import Call, Handle, Method, Received

# For a moment a client that vanished looks like one that is done sending: grpc tells of the end of
# messages first, and cancels the task when it learns of the rest.
VANISHED_S: Final = 0.001
_UNREADABLE: Final = (DecodeError, UnicodeDecodeError, RecursionError, ValueError)
_REMEMBERED_BYTES_MAX: Final = 256
_REMEMBERED_MAX: Final = 256


def reader(parse: Callable[[bytes], Any]) -> Callable[[bytes], Received]:
    """Wrap a deserialiser: grpc would answer UNKNOWN, with the parser's text, before any stage."""

    def read(raw: bytes) -> Received:
        try:
            return Received(parse(raw), b"\0" in raw)
        except _UNREADABLE:
            return Received(None, has_nul=False)

    return read


def unary(parse: Callable[[bytes], Any], method: Method) -> Callable[[bytes], Any]:
    """Make what reads the message of a unary call and checks it.

    The bytes of a read that were found right are right again: of those that are short enough the
    latest are remembered, where no rule looks at a clock. What changes something, and what anybody
    may send, is not: it may hold secrets.
    """
    check = _checker(method, searched=method.rule is not None)
    right: dict[bytes, None] = {}
    remembers = method.reads and not method.anonymous and faults.are_lasting(method.request)

    def read(raw: bytes) -> Any:
        if raw in right:
            return parse(raw)
        try:
            message = parse(raw)
        except _UNREADABLE:
            message = None
        check(Received(message, b"\0" in raw))
        if remembers and len(raw) <= _REMEMBERED_BYTES_MAX:
            if len(right) >= _REMEMBERED_MAX:
                del right[next(iter(right))]
            right[raw] = None
        return message

    return read


def stage(inner: Handle, method: Method) -> Handle:
    """Give the servicer of a stream plain messages, each checked; refuse the first that is wrong.

    Streams between services carry the hot path, and their senders are trusted by token: after
    the first, which says who it is, their messages are read safely, but not searched.
    """
    check = _checker(method, searched=method.rule is not None)
    later = check if method.public else _checker(method, searched=False)

    async def handle_one(call: Call, request: Received) -> Any:
        return await inner(call, check(request))

    async def handle_stream(call: Call, request: AsyncIterator[Received]) -> Any:
        return await inner(call, _checked(request, check, later, _idle_s(method)))

    return handle_stream if method.requests_stream else handle_one


def check_item(message: Message) -> None:
    """Refuse one message of a list whose items the contract leaves to who takes them.

    In the same words as where it comes alone.
    """
    _search(message, has_nul=b"\0" in message.SerializeToString())


def malformed(method: Method) -> InvalidArgument:
    """Make the answer to bytes that are no message of the method."""
    name = method.request.full_name
    return InvalidArgument(
        "MALFORMED_REQUEST",
        f"the bytes are no {name}: cut off, nested too deep, or text that is not UTF-8",
        message_type=name,
    )


def _idle_s(method: Method) -> float | None:
    """Return how long an upload may send nothing; a conversation may be silent while it lasts."""
    return method.limits.upload_idle_s if method.public and method.uploads else None


async def _checked(
    requests: AsyncIterator[Received],
    check: Callable[[Received], Any],
    later: Callable[[Received], Any],
    idle_s: float | None,
) -> AsyncIterator[Any]:
    if idle_s is None:  # the hot path between services: no clock is set for a message
        async for received in requests:
            yield check(received)
            check = later
        await asyncio.sleep(VANISHED_S)
        return
    while True:
        scope = asyncio.timeout(idle_s)
        try:
            async with scope:
                received = await anext(requests)
        except StopAsyncIteration:
            await asyncio.sleep(VANISHED_S)
            return
        except TimeoutError:
            if not scope.expired():
                raise
            raise DeadlineExceeded(
                "UPLOAD_IDLE", f"nothing was sent for {idle_s:g} s; send faster or half-close"
            ) from None
        yield check(received)
        check = later


def compile_ahead(package: str) -> None:
    """Compile the rules of all requests of a package's services, as far as it is imported.

    A server does that as it is built; who is to have built one soon has it done before.
    """
    modules = [each for name, each in sys.modules.items() if name.startswith(f"{package}.")]
    for module in modules:
        file = getattr(module, "DESCRIPTOR", None)
        for service in file.services_by_name.values() if file is not None else ():
            for method in service.methods:
                _compile(method.input_type)


@cache  # once for all listeners and servers of a process
def _compile(request: Descriptor) -> None:
    protovalidate.collect_violations(GetMessageClass(request)())


def _checker(method: Method, *, searched: bool) -> Callable[[Received], Any]:
    if searched:  # a rule that cannot be compiled must stop the start, not a call
        _compile(method.request)

    def check(received: Received) -> Any:
        if received.message is None:
            raise malformed(method)
        if searched:
            _search(received.message, has_nul=received.has_nul)
        return received.message

    return check


def _search(message: Message, *, has_nul: bool) -> None:
    faults.check_elements(message)
    found = faults.find_rule_faults(message)
    found += faults.find_content_faults(message, has_nul=has_nul, keeps_rules=not found)
    if found:
        raise faults.refusal(found)
