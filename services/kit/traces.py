"""Traces: parents of calls, runs and attempts in the W3C format, and the export of spans.

A place in a trace is a text, `00-<trace>-<span>-<flags>`. It arrives with a call, is stored with
the run that the call starts, and is passed with each attempt to its runner and into the node. Span
ids of runs and attempts are derived from their rows, so that a process which resumes a run exports
the same span. Without an endpoint nothing is read, stored or sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from services.kit import env as settings
from services.kit.env import EnvError

KEY: Final = "traceparent"
# The place of this task in its trace; unset outside of one.
CURRENT: Final[ContextVar[str]] = ContextVar("qflow_trace")

_FORM: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
# A later version of the format may have more fields.
_LATER_FORM: Final = re.compile(
    r"(?!00|ff)[0-9a-f]{2}(-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?:-.*)?"
)
_TRACE: Final = slice(3, 35)
_SPAN: Final = slice(36, 52)
_FLAGS: Final = slice(53, 55)
_NO_SPAN: Final = "0" * 16  # in the place of a new trace: there is no parent
_SAMPLED: Final = 1
_EXPORT_TIMEOUT_S: Final = 2
_TRACE_RANDOM_BITS: Final = 64


def given(text: str) -> str | None:
    """Return the place that a caller sent; None if it is invalid."""
    if _FORM.fullmatch(text):
        return text
    later = _LATER_FORM.fullmatch(text)
    return None if later is None else f"00{later[1]}"


def below(place: str, span_id: str) -> str:
    """Return the place of a span within the same trace."""
    return f"{place[: _SPAN.start]}{span_id}{place[_SPAN.stop :]}"


def sampled(place: str) -> bool:
    """Return whether the trace is to be exported, as its flags say."""
    return bool(int(place[_FLAGS], 16) & _SAMPLED)


def execution_span(execution_id: UUID) -> str:
    """Return the span id of a run."""
    return _derived(b"execution" + execution_id.bytes)


def attempt_span(attempt_ref: UUID, token: int) -> str:
    """Return the span id of an attempt."""
    return _derived(b"attempt" + attempt_ref.bytes + token.to_bytes(8))


def new_span() -> str:
    """Return a random span id."""
    return os.urandom(8).hex()


def _derived(of: bytes) -> str:
    return hashlib.sha256(of).hexdigest()[:16]


class Tracer:
    """Exports finished spans to a collector: in batches from a thread, never blocking the loop.

    Spans that cannot be sent in time are dropped.
    """

    def __init__(self, service: str, endpoint: str, *, ratio: float = 1.0) -> None:
        # Imported late: a process that exports nothing does not pay for the library.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._share = round(ratio * 2**_TRACE_RANDOM_BITS)
        self._ids = _ids()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"qflow.{service}"}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("qflow")

    def begin(self) -> str | None:
        """Return the place of a new trace; None if it is not sampled."""
        trace = os.urandom(16)
        if int.from_bytes(trace[8:]) >= self._share:
            return None
        return f"00-{trace.hex()}-{_NO_SPAN}-01"

    def ended(
        self,
        name: str,
        *,
        parent: str,
        span_id: str,
        began_ns: int,
        ended_ns: int | None = None,
        serves: bool = False,
        fault: str = "",
        facts: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """Export a finished span below its parent; `fault` is the error, if it failed."""
        if not sampled(parent):
            return
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind, Status, StatusCode

        above = None
        self._ids.trace_id = int(parent[_TRACE], 16)
        self._ids.span_id = int(span_id, 16)
        if parent[_SPAN] != _NO_SPAN:
            remote = trace.SpanContext(
                self._ids.trace_id,
                int(parent[_SPAN], 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
            )
            above = trace.NonRecordingSpan(remote)
        span = self._tracer.start_span(
            name,
            context=trace.set_span_in_context(above or trace.INVALID_SPAN),
            kind=SpanKind.SERVER if serves else SpanKind.INTERNAL,
            attributes=dict(facts or {}),
            start_time=began_ns,
        )
        if fault:
            span.set_status(Status(StatusCode.ERROR, fault))
        span.end(max(began_ns, ended_ns or time.time_ns()))

    def close(self) -> None:
        """Send what is queued, for a few seconds at most; blocks."""
        self._provider.shutdown()


def _ids() -> Any:
    from opentelemetry.sdk.trace.id_generator import IdGenerator

    class Chosen(IdGenerator):
        """Hands out the ids set for the next span."""

        trace_id = 0
        span_id = 0

        def generate_trace_id(self) -> int:
            return self.trace_id

        def generate_span_id(self) -> int:
            return self.span_id

    return Chosen()


class _Process:
    """The tracer of this process, shared by its servers and loops."""

    tracer: Tracer | None = None


def tracer() -> Tracer | None:
    """Return the tracer of this process; None if traces are off."""
    return _Process.tracer


@asynccontextmanager
async def told(service: str, env: Mapping[str, str]) -> AsyncIterator[Tracer | None]:
    """Export traces inside the block to the collector at `QFLOW_TRACES_ENDPOINT`, if it is set."""
    endpoint = settings.optional(env, "QFLOW_TRACES_ENDPOINT")
    if endpoint is None:
        yield None
        return
    _Process.tracer = made = Tracer(service, _checked(endpoint), ratio=_ratio(env))
    try:
        yield made
    finally:
        _Process.tracer = None
        await asyncio.to_thread(made.close)


def _checked(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/"):
        raise EnvError("QFLOW_TRACES_ENDPOINT must look like http://host:4317, or https://")
    return endpoint


def _ratio(env: Mapping[str, str]) -> float:
    text = settings.text(env, "QFLOW_TRACES_RATIO", "1")
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise EnvError("QFLOW_TRACES_RATIO must be a number from 0 to 1")
    return ratio
