"""Counters of calls: how many, how they ended, how long they took; cheap enough for every call."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import grpc

from services.kit.figures import Distribution, Figure, Labels
from services.kit.rpc.call import Call, Handle, Method
from services.kit.rpc.errors import code_of

_LABELS: Final = ("service", "method")
_OK: Final = grpc.StatusCode.OK


class Tally:
    """The calls of one method."""

    __slots__ = ("failed", "open", "succeeded", "took_s")

    def __init__(self) -> None:
        self.open = 0
        self.succeeded = 0
        self.failed: dict[str, int] = {}  # by name of the status code
        self.took_s = Distribution()

    def end(self, code: grpc.StatusCode, span_s: float) -> None:
        """Count a call that ended."""
        self.open -= 1
        if code is _OK:
            self.succeeded += 1
        else:
            self.failed[code.name] = self.failed.get(code.name, 0) + 1
        self.took_s.note(span_s)


class Calls:
    """The calls of one process, by method."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._streams: set[tuple[str, str]] = set()

    def of(self, method: Method) -> Tally:
        """Return the tally of a method."""
        service, _, name = method.name.removeprefix("/").rpartition("/")
        if method.streams:
            self._streams.add((service, name))
        return self._tallies.setdefault((service, name), Tally())

    def stage(self, inner: Handle, method: Method) -> Handle:
        """Count the calls of a streaming method."""
        tally = self.of(method)

        async def handle(call: Call, request: Any) -> Any:
            tally.open += 1
            began = time.perf_counter()
            code = _OK
            try:
                return await inner(call, request)
            except BaseException as error:
                code = code_of(error)
                raise
            finally:
                tally.end(code, time.perf_counter() - began)

        return handle

    def figures(self) -> Iterable[Figure]:
        """Return the metrics of all methods that were called."""
        called = {
            key: each
            for key, each in self._tallies.items()
            if each.open or each.succeeded or each.failed
        }
        ended: list[tuple[Labels, float]] = []
        for key, each in called.items():
            # OK is reported even when 0: a failure rate needs the total of calls.
            ended.append(((*key, _OK.name), each.succeeded))
            ended += [((*key, code), count) for code, count in each.failed.items()]
        text = "Calls that ended, by their status code."
        yield Figure("qflow_rpc_calls", text, "counter", (*_LABELS, "code"), ended)
        text = "Calls that are under way."
        under_way = [(key, float(each.open)) for key, each in called.items()]
        yield Figure("qflow_rpc_calls_open", text, "gauge", _LABELS, under_way)
        # The duration of a stream says nothing about the speed of the service.
        text = "How long calls took that are no streams."
        took = [(key, each.took_s) for key, each in called.items() if key not in self._streams]
        yield Figure("qflow_rpc_duration_seconds", text, "histogram", _LABELS, took)
