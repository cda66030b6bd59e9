"""The innermost stage: servicers only receive messages that keep the contract's rules."""

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

# A client that vanished first looks like one that finished sending: grpc reports the end of
# messages first, and cancels the task a moment later.
VANISHED_S: Final = 0.001
_UNREADABLE: Final = (DecodeError, UnicodeDecodeError, RecursionError, ValueError)
_REMEMBERED_BYTES_MAX: Final = 256
_REMEMBERED_MAX: Final = 256


def reader(parse: Callable[[bytes], Any]) -> Callable[[bytes], Received]:
    """Wrap a parser: on its errors grpc would send UNKNOWN with its text, before any stage."""

    def read(raw: bytes) -> Received:
        try:
            return Received(parse(raw), b"\0" in raw)
        except _UNREADABLE:
            return Received(None, has_nul=False)

    return read


def unary(parse: Callable[[bytes], Any], method: Method) -> Callable[[bytes], Any]:
    """Return a function that parses and validates the message of a unary call.

    The latest short messages of read-only methods that were valid are remembered by their bytes,
    unless a rule depends on the time. Those of changes and of anonymous calls are not: they may
    hold secrets.
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
    """Validate the messages of a stream; raises at the first that is invalid.

    Streams between services are the hot path, and their senders are trusted by token: their first
    message, which identifies the sender, is validated, the rest only parsed.
    """
    check = _checker(method, searched=method.rule is not None)
    later = check if method.public else _checker(method, searched=False)

    async def handle_one(call: Call, request: Received) -> Any:
        return await inner(call, check(request))

    async def handle_stream(call: Call, request: AsyncIterator[Received]) -> Any:
        return await inner(call, _checked(request, check, later, _idle_s(method)))

    return handle_stream if method.requests_stream else handle_one


def check_item(message: Message) -> None:
    """Validate one item of a list whose items the contract leaves to the use case.

    The error has the same texts as for the message alone.
    """
    _search(message, has_nul=b"\0" in message.SerializeToString())


def malformed(method: Method) -> InvalidArgument:
    """Return the error for bytes that are not a message of the method."""
    name = method.request.full_name
    return InvalidArgument(
        "MALFORMED_REQUEST",
        f"the bytes are no {name}: cut off, nested too deep, or text that is not UTF-8",
        message_type=name,
    )


def _idle_s(method: Method) -> float | None:
    """Return how long an upload may pause; None for other streams, which may be silent."""
    return method.limits.upload_idle_s if method.public and method.uploads else None


async def _checked(
    requests: AsyncIterator[Received],
    check: Callable[[Received], Any],
    later: Callable[[Received], Any],
    idle_s: float | None,
) -> AsyncIterator[Any]:
    if idle_s is None:  # the hot path between services: no timeout per message
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

    Building a server does that too; a process that will build one later can do it ahead.
    """
    modules = [each for name, each in sys.modules.items() if name.startswith(f"{package}.")]
    for module in modules:
        file = getattr(module, "DESCRIPTOR", None)
        for service in file.services_by_name.values() if file is not None else ():
            for method in service.methods:
                _compile(method.input_type)


@cache  # once per process, for all listeners and servers
def _compile(request: Descriptor) -> None:
    protovalidate.collect_violations(GetMessageClass(request)())


def _checker(method: Method, *, searched: bool) -> Callable[[Received], Any]:
    if searched:  # an invalid rule must fail the start, not a call
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
