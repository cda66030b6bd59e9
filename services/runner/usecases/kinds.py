"""Kinds of interpreters, the queue of calls for each, and whose turn it is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from services.runner.domain.pooling import Load, WarmKey, takes_turns
from services.runner.usecases.turns import Turns
from services.runner.usecases.warm import Need, Warm


class Given(Protocol):
    """Receives the interpreter of a call: a future, or a call that continues in callbacks."""

    def done(self) -> bool:
        """Return whether the call does not want one any more."""

    def set_result(self, warm: Warm, /) -> None:
        """Receive the interpreter; this must not call back into the pool."""

    def set_exception(self, problem: Exception, /) -> None:
        """Receive LoadFailed or SandboxDied: there will be no interpreter."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A call that waits for an interpreter."""

    place: int  # in order of arrival
    need: Need
    given: Given
    since_s: float  # when it began to wait, or was last checked
    served: int  # how many calls had been served at that time


@dataclass(slots=True, eq=False)
class Kind:
    """The interpreters of one key, and the calls that wait for one; looked up once per call."""

    key: WarmKey
    load: Load
    open: list[Warm] = field(default_factory=list)  # those with room for one more call
    waiting: deque[Waiter] = field(default_factory=deque)

    @property
    def left(self) -> bool:
        """Whether nothing uses it any more."""
        load = self.load
        return not (load.busy or load.starting or load.waiting or self.open)

    def first_waiter(self) -> Waiter | None:
        """Return the call that has waited longest."""
        waiting = self.waiting
        while waiting and waiting[0].given.done():
            waiting.popleft()
        return waiting[0] if waiting else None

    def next_to_enter(self) -> Waiter | None:
        """Return the longest waiting call that may enter: some need an empty interpreter."""
        first = self.first_waiter()
        if first is None or not first.need.alone or any(not warm.calls for warm in self.open):
            return first
        may_enter = (each for each in self.waiting if not each.given.done() and not each.need.alone)
        return next(may_enter, None)

    def shut(self, warm: Warm) -> None:
        """Offer an interpreter to no further call."""
        if warm in self.open:
            self.open.remove(warm)


class Kinds:
    """All kinds that have interpreters or waiting calls."""

    def __init__(self, turns: Turns) -> None:
        self._kinds: dict[WarmKey, Kind] = {}
        self._wanted: dict[Kind, None] = {}  # kinds with waiting calls
        self._turns = turns

    def leave(self, waiter: Waiter) -> None:
        """Remove a call from the queue."""
        self._waits_no_longer(self._kind_of(waiter.need.key), waiter)

    def _may_begin(self, kind: Kind) -> bool:
        return self._turns.left or not takes_turns(kind.load)

    def _next_to_begin(self) -> tuple[Kind, Waiter] | None:
        found: tuple[Kind, Waiter] | None = None
        gone = False
        for kind in self._wanted:
            if kind.open and self._may_begin(kind):
                waiter = kind.next_to_enter()
                gone = gone or not kind.waiting
                if waiter is not None and (found is None or waiter.place < found[1].place):
                    found = kind, waiter
        if gone:
            self._wanted = {kind: None for kind in self._wanted if kind.waiting}
        return found

    def _waits_no_longer(self, kind: Kind, waiter: Waiter) -> None:
        waiting = kind.waiting
        if waiting and waiting[0] is waiter:
            waiting.popleft()
        elif waiter in waiting:
            waiting.remove(waiter)
        if not waiting:
            self._wanted.pop(kind, None)
        kind.load.waiting -= 1
        self._forget_left(kind)

    def _kind_of(self, key: WarmKey) -> Kind:
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = Kind(key, Load(width=key.concurrency))
        return kind

    def _forget_left(self, kind: Kind | None) -> None:
        if kind is not None and kind.left:
            self._kinds.pop(kind.key, None)

    def _shut(self, warm: Warm) -> None:
        """Offer an interpreter to no further call."""
        kind = self._kinds.get(warm.key)
        if kind is not None:
            kind.shut(warm)
