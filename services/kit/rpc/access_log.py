"""One log line per call: caller, method, status and duration; never the content of messages."""

from __future__ import annotations

import re
import time
from typing import Any, Final

import grpc

from services.kit.ids import request_id as new_request_id
from services.kit.log import CALL_FIELDS, write_line
from services.kit.rpc.call import Call, Handle, Metadata
from services.kit.rpc.errors import code_of

REQUEST_ID_KEY: Final = "x-request-id"
OK: Final = grpc.StatusCode.OK
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,64}")


def stage(inner: Handle) -> Handle:
    """Log the call when it ends, and bind its request id to every line logged during it."""

    async def handle(call: Call, request: Any) -> Any:
        began = time.perf_counter()
        status = OK
        token = CALL_FIELDS.set({"rpc": call.method.name, "request_id": call.id})
        try:
            return await inner(call, request)
        except BaseException as error:
            status = code_of(error)
            raise
        finally:
            write(call, status, time.perf_counter() - began)
            CALL_FIELDS.reset(token)

    return handle


def request_id(metadata: Metadata) -> str:
    """Return the caller's own id of this request if it is well-formed, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return new_request_id()


def write(call: Call, status: grpc.StatusCode, span_s: float) -> None:
    """Log a call that ended with this status."""
    caller = call.caller
    fields = {
        "rpc": call.method.name,
        "request_id": call.id,
        "code": _NAMES[status],
        "duration_ms": round(span_s * 1000, 3),
        "caller_id": None if caller is None else str(caller.user_id),
        "caller": "anonymous" if caller is None else caller.kind,
    }
    write_line("warning" if status in _SERVER_FAULTS else "info", "call_ended", fields)


# Looked up here because `name` of an enum member is computed on every access.
_NAMES: Final = {each: each.name for each in grpc.StatusCode}
_SERVER_FAULTS: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS}
)
