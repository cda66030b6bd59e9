"""One line per call: who asked for what, how it ended and how long it took; never what was said."""

from __future__ import annotations

import re
import time
from typing import Any, Final

import grpc

from services.kit.ids import uuid7
from services.kit.log import CALL_FIELDS, write_line
from services.kit.rpc.call import Call, Handle, Metadata
from services.kit.rpc.errors import code_of

REQUEST_ID_KEY: Final = "x-request-id"
_OK: Final = grpc.StatusCode.OK.name
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,64}")


def stage(inner: Handle) -> Handle:
    """Log the call when it ends, and bind its request id to every line logged within it."""

    async def handle(call: Call, request: Any) -> Any:
        started = time.monotonic_ns()
        level, code = "info", _OK
        token = CALL_FIELDS.set({"rpc": call.method.name, "request_id": call.id})
        try:
            return await inner(call, request)
        except BaseException as error:
            status = code_of(error)
            level, code = "warning" if status in _SERVER_FAULTS else "info", status.name
            raise
        finally:
            _write(call, level, code, (time.monotonic_ns() - started) / 1e6)
            CALL_FIELDS.reset(token)

    return handle


def request_id(metadata: Metadata) -> str:
    """Return the caller's own id of this request when it sent a tame one, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return str(uuid7())


def _write(call: Call, level: str, code: str, duration_ms: float) -> None:
    caller = call.caller
    write_line(
        level,
        "call_ended",
        rpc=call.method.name,
        request_id=call.id,
        code=code,
        duration_ms=round(duration_ms, 3),
        caller_id=str(caller.user_id) if caller else None,
        caller=caller.kind if caller else "anonymous",
    )


_SERVER_FAULTS: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS}
)
