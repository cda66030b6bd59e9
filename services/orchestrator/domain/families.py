"""Families: runs with their sub-workflows. An error in a step of one stays within its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import NamedTuple
from uuid import UUID

from services.orchestrator.domain.children import EndedChild
from services.orchestrator.domain.effects import Effects
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RUN_FINAL


class Fault(NamedTuple):
    """What went wrong in a step; the run and all that is a part of it are forgotten.

    Memory stood half-way between two states; their rows do not, and are to be read again.
    """

    run_ids: tuple[UUID, ...]  # what a caller started first
    refs: frozenset[UUID]  # of their node rows
    error: Exception
    asked: bool  # by a caller who is told: the run itself stands as before


class _Step:
    """One step of a run; a class of its own, for each node has some and a generator costs more."""

    __slots__ = ("_asked", "_families", "_run_id")

    def __init__(self, families: Families, run_id: UUID, asked: bool) -> None:  # noqa: FBT001
        self._families = families
        self._run_id = run_id
        self._asked = asked

    def __enter__(self) -> None:
        """Begin it."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """End it; what went wrong is told by who takes the faults."""
        if not isinstance(error, Exception):
            return False
        self._families.fault(self._run_id, error, asked=self._asked)
        return True


class Families(ABC):
    """The runs of one orchestrator, each with those that are a part of it."""

    fx: Effects

    def __init__(self) -> None:
        self.runs: dict[UUID, Run] = {}
        self._adopted: dict[UUID, None] = {}  # those that were read from rows and not yet revived
        self._ended_children: dict[UUID, EndedChild] = {}  # of those
        self.faults: list[Fault] = []  # since the last event; whoever brings events takes them

    @abstractmethod
    def forget(self, run_id: UUID) -> Run | None:
        """Drop a run from memory."""

    def _root(self, run: Run) -> Run:
        """Give the run that a caller started, of which this one is a sub-workflow or itself."""
        while run.parent is not None and run.parent[0] in self.runs:
            run = self.runs[run.parent[0]]
        return run

    def root_of(self, run_id: UUID) -> UUID:
        """Give the run that a caller started, of which a run is a part or which it is itself."""
        run = self.runs.get(run_id)
        return run_id if run is None else self._root(run).id

    def parts_of(self, run_ids: Collection[UUID]) -> list[UUID]:
        """Give runs, and then all that are a part of one of them, over or not."""
        parts = (each for each in self.runs if self.root_of(each) in run_ids)
        return [*run_ids, *(each for each in parts if each not in run_ids)]

    def _family(self, run_id: UUID) -> list[Run]:
        """Give a run with all runs of its sub-workflows that are not over."""
        found = [self.runs[run_id]]
        for run in found:  # it grows while it is walked
            children = (each.child for each in run.records if each is not None and each.child)
            found += [self.runs[each] for each in children if each in self.runs]
        return [run for run in found if run.status not in RUN_FINAL]

    # --- faults ---------------------------------------------------------------------------------

    def fault(self, run_id: UUID, error: Exception, *, asked: bool = False) -> None:
        """Forget a run in whose step something went wrong, with what that step left to do."""
        gone = self.parts_of([self.root_of(run_id)])
        runs = [self.runs[each] for each in gone if each in self.runs]
        refs = frozenset(each.id for run in runs for each in run.records if each is not None)
        for each in gone:
            self.forget(each)
        self.fx.forget(gone)
        self.faults.append(Fault(tuple(gone), refs, error, asked))

    def fault_of(self, run_id: UUID) -> Fault | None:
        """Give what went wrong in a run with this event."""
        return next((each for each in self.faults if run_id in each.run_ids), None)

    def _step(self, run_id: UUID, *, asked: bool = False) -> _Step:
        """Step one run in a block: the others go on whatever becomes of it."""
        return _Step(self, run_id, asked)

    def _is_gone(self, run_id: UUID) -> bool:
        """Whether a run was forgotten with this event: nothing that it left to do is to be done."""
        return run_id not in self.runs

    def _is_faulty(self, ref: UUID) -> bool:
        """Whether a node row that memory has no more is to be read again: it is not late."""
        return any(ref in each.refs for each in self.faults)
