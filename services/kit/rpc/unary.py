"""Unary calls, which nearly all calls are: every stage, in two functions.

Each stage is implemented in its own module, and streams wrap them one by one. Here the same steps
run in the same order, without a coroutine, an argument list and a context per stage, which would
cost as much as the stages themselves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias

import grpc

from services.kit.deadlines import Deadlines
from services.kit.log import CALL_FIELDS
from services.kit.rpc import access_log, deadline, errors, validate
from services.kit.rpc.admission import Room
from services.kit.rpc.audit import Notes
from services.kit.rpc.auth import Gate
from services.kit.rpc.call import Call, Handle, Method
from services.kit.rpc.fair_share import FairShare
from services.kit.rpc.tally import Tally

Answer: TypeAlias = "Callable[[Any, Any], Awaitable[Any]]"

_OK: Final = grpc.StatusCode.OK
# Replaces the dict of timed calls for a call whose deadline had passed before it began.
_NONE: Final[dict[asyncio.Task[Any], float]] = {}


def inner(
    behavior: Answer,
    parse: Callable[[bytes], Any],
    method: Method,
    *,
    gate: Gate | None,
    room: Room,
    share: FairShare | None,
    notes: Notes | None,
) -> Handle:
    """Return the inner step: authenticate, receive, admit, run the servicer, audit.

    It returns the response encoded.
    """
    read = validate.unary(parse, method)
    told_only = method.reads  # changes are answered even if their caller lost access meanwhile

    async def noted(call: Call, raw: bytes, notes: Notes) -> Any:
        told, message = notes.begin(), None
        try:
            message = read(raw)
            answer = await behavior(message, call.context)
        except BaseException as error:
            notes.end(call, told, message=message, answer=None, error=error)
            raise
        _behind(call, partial(notes.end, call, told, message=message, answer=answer, error=None))
        return answer

    async def handle(call: Call, _: Any) -> bytes:
        if gate is not None and not gate.enter_known(call):
            await gate.enter(call)
        raw = await room.receive(call)
        if raw is grpc.aio.EOF:
            await asyncio.sleep(validate.VANISHED_S)
            raise validate.malformed(method)
        room.enter()
        user = None
        try:
            if share is not None:
                user = share.enter(call)
            if notes is None:
                answer = await behavior(read(raw), call.context)
            else:
                answer = await noted(call, raw, notes)
        finally:
            room.leave()
            if user is not None and share is not None:
                share.leave(user)
        if told_only and gate is not None and call.caller is not None and call.caller.team_role:
            await gate.leave(call)
        # A servicer may return a response that it keeps encoded.
        encoded: bytes = answer if type(answer) is bytes else answer.SerializeToString()
        return encoded

    return handle


def outer(
    handle: Handle, method: Method, deadlines: Deadlines[asyncio.Task[Any]], tally: Tally | None
) -> Handle:
    """Return the outer step: deadline, status, log line and count."""
    tell = _teller(method, tally)

    async def serve(call: Call, request: Any) -> Any:
        began = time.perf_counter()
        if tally is not None:
            tally.open += 1
        CALL_FIELDS.set({"rpc": method.name, "request_id": call.id})
        code = grpc.StatusCode.INTERNAL
        timed, limit_s = _NONE, 0.0
        try:
            limit_s = deadline.unary_limit(method.limits, call.context.time_remaining())
            timed = deadlines.begin(call.task, deadline.begin(limit_s))
            answer = await handle(call, request)
            code = _OK
            return answer
        except asyncio.CancelledError as error:
            # Only a cancellation by the deadline or the drain becomes an error; others propagate.
            if call.task in timed or call.task.uncancel() > 0:
                code = errors.code_of(error)
                raise
            failure: Exception = (
                deadline.draining() if deadlines.over else deadline.exceeded(limit_s)
            )
            code = errors.code_of(failure)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001  # the outermost handler
            code = errors.code_of(error)
            failure = error
        finally:
            timed.pop(call.task, None)
            telling = partial(tell, call, code, time.perf_counter() - began)
            if code is _OK:
                _behind(call, telling)
            else:
                telling()
        return await errors.answer(failure, call)

    return serve


def _teller(method: Method, tally: Tally | None) -> Callable[[Call, grpc.StatusCode, float], None]:
    """Return a function that logs and counts a call that ended."""
    logged = method.rule is not None  # probes of health are too many to be worth a line

    def tell(call: Call, code: grpc.StatusCode, span_s: float) -> None:
        if logged:
            access_log.write(call, code, span_s)
        if tally is not None:
            tally.end(code, span_s)

    return tell


def _behind(call: Call, tell: Callable[[], None]) -> None:
    """Report a successful call after its response, which gRPC sends before the task is done.

    Until then the report is only in memory, as all records are for a moment anyway.
    """
    call.task.get_loop().call_soon(tell)
