"""One line per call: who asked for what, how it ended and how long it took; never what was said."""

from __future__ import annotations

import re
import time
from typing import Any, Final

import grpc

from services.kit.ids import uuid7
from services.kit.log import CALL_FIELDS, write_line
from services.kit.rpc.call import Call, Context, Handle
from services.kit.rpc.errors import code_of

REQUEST_ID_KEY: Final = "x-request-id"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,64}")


def stage(inner: Handle) -> Handle:
    """Log the call when it ends, and bind its request id to every line logged within it."""

    async def handle(call: Call, request: Any) -> Any:
        started = time.monotonic_ns()
        code = grpc.StatusCode.OK
        token = CALL_FIELDS.set({"rpc": call.method.name, "request_id": call.id})
        try:
            return await inner(call, request)
        except BaseException as error:
            code = code_of(error)
            raise
        finally:
            _write(call, code, (time.monotonic_ns() - started) / 1e6)
            CALL_FIELDS.reset(token)

    return handle


def request_id(context: Context) -> str:
    """Return the caller's own id of this request when it sent a tame one, else a new one."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return str(uuid7())


def _write(call: Call, code: grpc.StatusCode, duration_ms: float) -> None:
    caller = call.caller
    write_line(
        "warning" if code in _SERVER_FAULTS else "info",
        "call_ended",
        {
            "rpc": call.method.name,
            "request_id": call.id,
            "code": code.name,
            "duration_ms": round(duration_ms, 3),
            "caller_id": str(caller.user_id) if caller else None,
            "caller": caller.kind if caller else "anonymous",
        },
    )


_SERVER_FAULTS: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS}
)
