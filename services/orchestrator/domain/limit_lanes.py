"""The lines of a limit: groups that wait, each of one owner, and the counts that they wait for."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from services.orchestrator.domain.limits import Demand, Lane
from services.orchestrator.domain.turns import Line, Turns

# In the place of a slot: the run itself waits, and nothing of it has begun.
WHOLE_RUN: Final = -1
STEP_MAX: Final = 64  # places of one count that are asked for at once


class Waiting(NamedTuple):
    """A run, or a slot of one, that waits."""

    run_id: UUID
    slot: int
    alone: bool = False
    since: int = 0  # the turn that it had before a pause, or in which its run asked first


class Place(NamedTuple):
    """Where what waits of a run for the same counts stands in line."""

    demand: Demand  # the count that holds it up
    slots: list[int]
    ahead: int  # what comes before the first of them, as turns stand now


@dataclass(slots=True, eq=False)
class Group:
    """What waits of one owner, at one priority, for places in the same counts."""

    lane: Lane
    owner: Hashable
    priority: int
    counts: tuple[Count, ...]
    tenant_id: UUID | None
    since: int  # when it came, or was asked for last
    runs: OrderedDict[UUID, deque[Waiting]] = field(default_factory=OrderedDict)
    turns: dict[UUID, int] = field(default_factory=dict)  # of runs: they stand in this order
    size: int = 0
    asked: int = 0  # places that are asked for, as yet without an answer
    crowd: Crowd | None = None  # where it stands
    held_by: Demand | None = None  # the count that it stands at, waiting for a place in it

    def __iter__(self) -> Iterator[Waiting]:
        for found in self.runs.values():
            yield from found

    def push(self, waiting: Waiting, turn: int) -> None:
        """Let something wait, at the end of what waits of its run.

        A run whose turn was before that of others comes before them: a pause took it out.
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
        """Take out who is next; its run goes to the end, with the turn that is the last."""
        run_id, found = self.runs.popitem(last=False)
        waiting = found.popleft()
        if found:
            self.runs[run_id], self.turns[run_id] = found, turn
        else:
            del self.turns[run_id]
        self.size -= 1
        return waiting

    def forget(self, run_id: UUID, *, whole: bool) -> dict[int, int]:
        """Drop what waits of a run, the run itself only if `whole`; returns its turn, by slot."""
        found, turn = self.runs[run_id], self.turns[run_id]
        gone = [each.slot for each in found if whole or each.slot != WHOLE_RUN]
        if len(gone) == len(found):
            del self.runs[run_id], self.turns[run_id]
        else:
            self.runs[run_id] = deque(each for each in found if each.slot == WHOLE_RUN)
        self.size -= len(gone)
        return dict.fromkeys(gone, turn)

    def ahead_of(self, run_id: UUID) -> int:
        """Count what comes before the first that waits of a run, of what waits here."""
        return next(at for at, each in enumerate(self.runs) if each == run_id)

    def full_count(self) -> Count | None:
        """Give one of its counts that is full."""
        return next((each for each in self.counts if each.full), None)

    def short_of(self) -> Count | None:
        """Give one of its counts that is to be asked for no more at present; a full one first."""
        found = self.full_count()
        return found or next((each for each in self.counts if not each.has_room), None)


_Owners: TypeAlias = Line[Hashable, Line[Group, None]]


class Crowd:
    """Groups that stand together: by priority, then owners in turn, then the groups of each."""

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
        """Let a group stand here that stands nowhere."""
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
        """Let a group stand here no more."""
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
        """Give the group that is next; some must stand here."""
        _, groups = self._levels[max(self._levels)].first()
        return groups.first()[0]

    def turn(self) -> tuple[int, int, int]:
        """Tell how soon the one that is next here is, among several crowds."""
        group = self.first()
        return -group.priority, self._turns.last(group.owner), group.since

    def ahead_of(self, group: Group, run_id: UUID) -> int:
        """Count what comes before the first that waits of a run in a group that stands here."""
        groups = self._levels[group.priority].get(group.owner)
        assert groups is not None, "it stands here"
        own = _taking_turns(
            group.ahead_of(run_id),
            [(each.size, each.since < group.since) for each, _ in groups if each is not group],
        )
        urgent = 0
        served: dict[Hashable, tuple[int, int]] = {}  # when owners are, by more urgent levels
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
        """Know that turns of owners were taken back."""
        for owner in owners:
            for line in self._levels.values():
                line.renew(owner)


def _taking_turns(own: int, others: Iterable[tuple[int, bool]]) -> int:
    """Count what comes before one that has `own` of its kind before it, where kinds take turns.

    Of each other kind that is how much there is of it, and whether its turn comes first.
    """
    return own + sum(min(size, own + is_first) for size, is_first in others)


def _since(group: Group) -> int:
    return group.since


@dataclass(slots=True, eq=False)
class Count:
    """A count in which something needs a place, with what stands there because it has none."""

    demand: Demand
    crowd: Crowd
    groups: int = 0  # that need a place in it, wherever they stand
    full: bool = False  # it had no place, and none was given back since
    freed: bool = False  # a place was given back since it was last asked for
    step: int = 1  # how many places are asked for next
    asked: int = 0
    closed: bool = False  # whoever is next needs a place in it and waits for an answer

    @property
    def has_room(self) -> bool:
        """Whether it may have another place to ask for."""
        return not self.full and not self.closed and self.asked < self.step
