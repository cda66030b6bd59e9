"""Queues of limits: groups of waiting slots, each of one owner, ordered by turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from services.orchestrator.domain.limits import Demand, Lane
from services.orchestrator.domain.turns import Line, Turns

# Instead of a slot number: the run itself waits, before it begins.
WHOLE_RUN: Final = -1
STEP_MAX: Final = 64  # slots of one count requested at once


class Waiting(NamedTuple):
    """A run, or a slot of one, that waits."""

    run_id: UUID
    slot: int
    alone: bool = False
    since: int = 0  # its turn before a pause, or of the first request of its run


class Position(NamedTuple):
    """The position in a queue of what waits for a run."""

    demand: Demand  # the count that holds it up
    slots: list[int]
    ahead: int  # how many come before the first of them now


@dataclass(slots=True, eq=False)
class Group:
    """What waits for one owner, at one priority, for slots in the same counts."""

    lane: Lane
    owner: Hashable
    priority: int
    counts: tuple[Count, ...]
    tenant_id: UUID | None
    since: int  # the turn when it came or last got a slot
    runs: OrderedDict[UUID, deque[Waiting]] = field(default_factory=OrderedDict)
    turns: dict[UUID, int] = field(default_factory=dict)  # of runs, which are in this order
    size: int = 0
    asked: int = 0  # slots requested and not answered yet
    crowd: Crowd | None = None  # the crowd it is in
    held_by: Demand | None = None  # the count that it waits for

    def __iter__(self) -> Iterator[Waiting]:
        for found in self.runs.values():
            yield from found

    def push(self, waiting: Waiting, turn: int) -> None:
        """Add something at the end of what waits for its run.

        A run with an earlier turn, which it had before a pause, is inserted before the others.
        """
        found = self.runs.get(waiting.run_id)
        if found is None:
            self._insert(waiting.run_id, deque([waiting]), turn)
        else:
            found.append(waiting)
        self.size += 1

    def _insert(self, run_id: UUID, found: deque[Waiting], turn: int) -> None:
        later = []
        for other in reversed(self.runs):
            if self.turns[other] <= turn:
                break
            later.append(other)
        self.runs[run_id], self.turns[run_id] = found, turn
        for other in reversed(later):
            self.runs.move_to_end(other)

    def pop(self, turn: int) -> Waiting:
        """Remove and return the next; its run goes to the end, with `turn`."""
        run_id, found = self.runs.popitem(last=False)
        waiting = found.popleft()
        if found:
            self.runs[run_id], self.turns[run_id] = found, turn
        else:
            del self.turns[run_id]
        self.size -= 1
        return waiting

    def forget(self, run_id: UUID, *, whole: bool) -> dict[int, int]:
        """Drop what waits for a run, the run itself only if `whole`; returns its turn by slot."""
        found, turn = self.runs[run_id], self.turns[run_id]
        gone = [each.slot for each in found if whole or each.slot != WHOLE_RUN]
        if len(gone) == len(found):
            del self.runs[run_id], self.turns[run_id]
        else:
            self.runs[run_id] = deque(each for each in found if each.slot == WHOLE_RUN)
        self.size -= len(gone)
        return dict.fromkeys(gone, turn)

    def ahead_of(self, run_id: UUID) -> int:
        """Count what comes before the first that waits for a run, within this group."""
        return next(at for at, each in enumerate(self.runs) if each == run_id)

    def full_count(self) -> Count | None:
        """Return one of its counts that is full, if any."""
        return next((each for each in self.counts if each.full), None)

    def short_of(self) -> Count | None:
        """Return one of its counts that must not be requested now, a full one first."""
        found = self.full_count()
        return found or next((each for each in self.counts if not each.has_room), None)


_Owners: TypeAlias = Line[Hashable, Line[Group, None]]


class Crowd:
    """Groups in one queue: by priority, then by the owners' turns, then by group."""

    def __init__(self, tenant_id: UUID | None, owners: Turns) -> None:
        self.tenant_id = tenant_id
        self._turns = owners
        self._levels: dict[int, _Owners] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Group]:
        for _, owners in sorted(self._levels.items(), reverse=True):
            for _, groups in owners:
                for group, _ in groups:
                    yield group

    def add(self, group: Group) -> None:
        """Add a group that is in no crowd."""
        owners = self._levels.get(group.priority)
        if owners is None:
            owners = self._levels[group.priority] = Line(self._turns.last)
        groups = owners.get(group.owner)
        if groups is None:
            groups = owners.add(group.owner, Line(_since))
        groups.add(group, None)
        group.crowd = self
        self._size += 1

    def remove(self, group: Group) -> None:
        """Remove a group."""
        owners = self._levels[group.priority]
        groups = owners.get(group.owner)
        assert groups is not None
        groups.remove(group)
        if not groups:
            owners.remove(group.owner)
        if not owners:
            del self._levels[group.priority]
        group.crowd = None
        self._size -= 1

    def first(self) -> Group:
        """Return the next group; there must be one."""
        _, groups = self._levels[max(self._levels)].first()
        return groups.first()[0]

    def turn(self) -> tuple[int, int, int]:
        """Return the sort key of the next group, to compare crowds."""
        group = self.first()
        return -group.priority, self._turns.last(group.owner), group.since

    def ahead_of(self, group: Group, run_id: UUID) -> int:
        """Count what comes before the first that waits for a run in a group of this crowd."""
        groups = self._levels[group.priority].get(group.owner)
        assert groups is not None, "it stands here"
        own = _taking_turns(
            group.ahead_of(run_id),
            [(each.size, each.since < group.since) for each, _ in groups if each is not group],
        )
        urgent = 0
        served: dict[Hashable, tuple[int, int]] = {}  # turns of owners in more urgent levels
        for level, (priority, owners) in enumerate(sorted(self._levels.items(), reverse=True), 1):
            sizes = {owner: sum(each.size for each, _ in of) for owner, of in owners}
            turns = sorted(sizes, key=lambda each: served.get(each, (0, self._turns.last(each))))
            if priority == group.priority:
                mine = turns.index(group.owner)
                others = [(sizes[each], at < mine) for at, each in enumerate(turns) if at != mine]
                return urgent + _taking_turns(own, others)
            urgent += sum(sizes.values())
            for at, owner in enumerate(sorted(turns, key=sizes.__getitem__)):
                served[owner] = level, at
        raise AssertionError("its level is one of these")

    def renew(self, owners: Iterable[Hashable]) -> None:
        """Reorder owners whose turns were restored."""
        for owner in owners:
            for line in self._levels.values():
                line.renew(owner)


def _taking_turns(own: int, others: Iterable[tuple[int, bool]]) -> int:
    """Count what comes before something with `own` of its kind before it, if kinds take turns.

    `others` holds the size of each other kind, and whether its turn comes first.
    """
    return own + sum(min(size, own + is_first) for size, is_first in others)


def _since(group: Group) -> int:
    return group.since


@dataclass(slots=True, eq=False)
class Count:
    """A count of a limit of which slots are wanted, and the groups that wait for it."""

    demand: Demand
    crowd: Crowd
    groups: int = 0  # that need a slot of it, wherever they are
    full: bool = False  # it had no free slot, and none was released since
    freed: bool = False  # a slot was released since the last request
    step: int = 1  # how many slots to request next
    asked: int = 0
    closed: bool = False  # the next group needs a slot of it, and waits for an answer

    @property
    def has_room(self) -> bool:
        """Whether another slot may be requested."""
        return not self.full and not self.closed and self.asked < self.step
