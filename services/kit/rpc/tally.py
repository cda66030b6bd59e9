"""Counting calls: how many, how they ended, how long they took; an addition or two for each."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final

import grpc

from services.kit.figures import Distribution, Figure, Labels
from services.kit.rpc.call import Call, Handle, Method
from services.kit.rpc.errors import code_of

_LABELS: Final = ("service", "method")
_OK: Final = grpc.StatusCode.OK.name


class _Tally:
    __slots__ = ("failed", "open", "succeeded", "took_s")

    def __init__(self) -> None:
        self.open = 0
        self.succeeded = 0
        self.failed: dict[str, int] = {}  # by the name of the code
        self.took_s = Distribution()


class Calls:
    """The calls of one process, by method."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._streams: set[tuple[str, str]] = set()

    def stage(self, inner: Handle, method: Method) -> Handle:
        """Count the calls of a method."""
        service, _, name = method.name.removeprefix("/").rpartition("/")
        tally = self._tallies.setdefault((service, name), _Tally())
        if method.streams:
            self._streams.add((service, name))
        took_s = tally.took_s
        clock = time.perf_counter

        async def handle(call: Call, request: Any) -> Any:
            tally.open += 1
            began = clock()
            try:
                answer = await inner(call, request)
            except BaseException as error:
                code = code_of(error).name
                tally.failed[code] = tally.failed.get(code, 0) + 1
                raise
            else:
                tally.succeeded += 1
                return answer
            finally:
                tally.open -= 1
                took_s.note(clock() - began)

        return handle

    def figures(self) -> Iterable[Figure]:
        """Tell of all methods that were called."""
        called = {
            key: each
            for key, each in self._tallies.items()
            if each.open or each.succeeded or each.failed
        }
        ended: list[tuple[Labels, float]] = []
        for key, each in called.items():
            # A rate of failures needs a rate of all calls, so what has none yet is told as 0.
            ended.append(((*key, _OK), each.succeeded))
            ended += [((*key, code), count) for code, count in each.failed.items()]
        text = "Calls that ended, by their status code."
        yield Figure("qflow_rpc_calls", text, "counter", (*_LABELS, "code"), ended)
        text = "Calls that are under way."
        under_way = [(key, float(each.open)) for key, each in called.items()]
        yield Figure("qflow_rpc_calls_open", text, "gauge", _LABELS, under_way)
        # How long a stream was held says nothing of how quick the service is.
        text = "How long calls took that are no streams."
        took = [(key, each.took_s) for key, each in called.items() if key not in self._streams]
        yield Figure("qflow_rpc_duration_seconds", text, "histogram", _LABELS, took)
