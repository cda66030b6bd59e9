"""Effects of an event beyond its rows, executed by the core after it."""

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
    """What a timer of a slot is for."""

    NEXT = auto()  # its next attempt, or the end of its wait
    QUEUE = auto()  # its queue timeout
    TOTAL = auto()  # its timeout for all attempts together


class Ready(NamedTuple):
    """A slot that is ready for a runner, or a group with elements that are."""

    run: Run
    slot: int
    alone: bool = False


class Timer(NamedTuple):
    """A timer of a slot."""

    run: Run
    slot: int
    delay_ms: int
    what: Due = Due.NEXT


class Start(NamedTuple):
    """A sub-workflow to start."""

    run: Run
    row: RunInsert


class Stop(NamedTuple):
    """A sub-workflow to stop with its parent."""

    run_id: UUID
    resumes: bool = False  # requested by a caller: a paused one is resumed to stop
    # The parent's failure: nothing new begins in it, and running attempts end by themselves.
    failed: Failure | None = None


@dataclass(slots=True)
class Effects:
    """The planner's sources of ids, tokens and randomness, and what an event leaves to do.

    `todo` holds places of the current run that may have to begin or be skipped; it is empty again
    after each event.
    """

    new_id: Callable[[], UUID]
    draw: Callable[[], float]
    next_token: Callable[[], int]
    wall: Callable[[], datetime]
    todo: deque[int] = field(default_factory=deque)
    # Groups that have ended, with their output or failure; empty again after each event.
    over: deque[tuple[int, NodeOutput | None, Failure | None]] = field(default_factory=deque)
    ready: list[Ready] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    ended: list[Run] = field(default_factory=list)  # sub-workflows that have ended

    @property
    def pending(self) -> bool:
        """Whether anything but `ready` is left to do."""
        return bool(self.timers or self.starts or self.stops or self.ended)

    def forget(self, run_ids: Collection[UUID]) -> None:
        """Drop what is left to do for forgotten runs, one of them in the middle of a step."""
        self.todo.clear()
        self.over.clear()
        self.ready = [each for each in self.ready if each.run.id not in run_ids]
        self.timers = [each for each in self.timers if each.run.id not in run_ids]
        self.starts = [
            each
            for each in self.starts
            if each.run.parent is None or each.run.parent[0] not in run_ids
        ]
