"""Effects of an event beyond its rows, which the core carries out after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from typing import NamedTuple
from uuid import UUID

from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.rows import RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.values import NodeOutput


class Due(Enum):
    """What a timer of a slot is about."""

    NEXT = auto()  # its next attempt, or the end of its wait
    QUEUE = auto()  # it has waited for a runner as long as it may
    TOTAL = auto()  # it has taken as long as it may, all attempts together


class Ready(NamedTuple):
    """A slot that wants a runner, or a group that has elements to give to one."""

    run: Run
    slot: int
    alone: bool = False


class Timer(NamedTuple):
    """When a slot is looked at again."""

    run: Run
    slot: int
    delay_ms: int
    what: Due = Due.NEXT


class Start(NamedTuple):
    """A sub-workflow that begins."""

    run: Run
    row: RunInsert


class Stop(NamedTuple):
    """A sub-workflow that ends with what it is a part of."""

    run_id: UUID
    resumes: bool = False  # a caller asks for it, whom no pause keeps from that
    # What it is a part of failed: nothing new begins in it, and what runs there ends by itself.
    failed: Failure | None = None


@dataclass(slots=True)
class Effects:
    """Where the planner draws ids, tokens and chance from, and what it leaves to do.

    `todo` are places of the run at hand that may have to begin or be skipped; it is empty again
    when an event has been taken.
    """

    new_id: Callable[[], UUID]
    draw: Callable[[], float]
    next_token: Callable[[], int]
    wall: Callable[[], datetime]
    todo: deque[int] = field(default_factory=deque)
    # Groups that are over, with what they gave or why they failed; empty again like `todo`.
    over: deque[tuple[int, NodeOutput | None, Failure | None]] = field(default_factory=deque)
    ready: list[Ready] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    ended: list[Run] = field(default_factory=list)  # sub-workflows that are over

    @property
    def pending(self) -> bool:
        """Whether anything is left to carry out, besides what is ready."""
        return bool(self.timers or self.starts or self.stops or self.ended)

    def forget(self, run_ids: Collection[UUID]) -> None:
        """Leave nothing to do of runs that are forgotten, one of them in the middle of a step."""
        self.todo.clear()
        self.over.clear()
        self.ready = [each for each in self.ready if each.run.id not in run_ids]
        self.timers = [each for each in self.timers if each.run.id not in run_ids]
        self.starts = [
            each
            for each in self.starts
            if each.run.parent is None or each.run.parent[0] not in run_ids
        ]
