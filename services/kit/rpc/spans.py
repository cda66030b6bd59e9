"""A span per call, below that of its caller; only where traces are exported."""

from __future__ import annotations

import time
from typing import Any, Final

from services.kit import traces
from services.kit.rpc.call import Call, Handle, Metadata, Method
from services.kit.rpc.errors import code_of
from services.kit.traces import Tracer

_OK: Final = "OK"
_FAULTS: Final = frozenset({"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED"})


def stage(inner: Handle, method: Method, tracer: Tracer) -> Handle:
    """Export a span of each call when it ends, and set it as parent of what the call does.

    A call between services gets a span only if its caller sent one.
    """
    service, _, name = method.name.removeprefix("/").rpartition("/")
    facts = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    title = f"{service}/{name}"

    async def handle(call: Call, request: Any) -> Any:
        parent = _named(call.metadata) or (tracer.begin() if method.public else None)
        if parent is None:
            return await inner(call, request)
        span_id, began_ns, code = traces.new_span(), time.time_ns(), _OK
        token = traces.CURRENT.set(traces.below(parent, span_id))
        try:
            return await inner(call, request)
        except BaseException as error:
            code = code_of(error).name
            raise
        finally:
            traces.CURRENT.reset(token)
            tracer.ended(
                title,
                parent=parent,
                span_id=span_id,
                began_ns=began_ns,
                serves=True,
                fault=code if code in _FAULTS else "",
                facts={**facts, "rpc.grpc.status": code, "qflow.request_id": call.id},
            )

    return handle


def _named(metadata: Metadata) -> str | None:
    for key, value in metadata:
        if key == traces.KEY and isinstance(value, str):
            return traces.given(value)
    return None
