"""Families: runs with their sub-workflows. An exception in a step affects one family only."""

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
    """An exception in a step, after which the run's family was forgotten.

    Memory may have been half-way between two states; the rows are not, and have to be reloaded.
    """

    run_ids: tuple[UUID, ...]  # of the family, the root first
    refs: frozenset[UUID]  # of their node rows
    error: Exception
    asked: bool  # raised by a caller's change, who gets the error: the run itself is intact


class _Step:
    """One step of a run; a class, since a generator would cost more, several times per node."""

    __slots__ = ("_asked", "_families", "_run_id")

    def __init__(self, families: Families, run_id: UUID, asked: bool) -> None:  # noqa: FBT001
        self._families = families
        self._run_id = run_id
        self._asked = asked

    def __enter__(self) -> None:
        """Begin the step."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        """End the step; an exception becomes a fault, handled later."""
        if not isinstance(error, Exception):
            return False
        self._families.fault(self._run_id, error, asked=self._asked)
        return True


class Families(ABC):
    """The runs of one orchestrator, with their sub-workflows."""

    fx: Effects

    def __init__(self) -> None:
        self.runs: dict[UUID, Run] = {}
        self._adopted: dict[UUID, None] = {}  # loaded runs that are not revived yet
        self._ended_children: dict[UUID, EndedChild] = {}  # of loaded runs
        self.faults: list[Fault] = []  # of the last event; `Memory` takes them

    @abstractmethod
    def forget(self, run_id: UUID) -> Run | None:
        """Drop a run from memory."""

    def _root(self, run: Run) -> Run:
        """Return the root of a run: the run that a caller started."""
        while run.parent is not None and run.parent[0] in self.runs:
            run = self.runs[run.parent[0]]
        return run

    def root_of(self, run_id: UUID) -> UUID:
        """Return the id of a run's root: the run that a caller started."""
        run = self.runs.get(run_id)
        return run_id if run is None else self._root(run).id

    def parts_of(self, run_ids: Collection[UUID]) -> list[UUID]:
        """Return these runs, then all sub-workflows below them, ended or not."""
        parts = (each for each in self.runs if self.root_of(each) in run_ids)
        return [*run_ids, *(each for each in parts if each not in run_ids)]

    def _family(self, run_id: UUID) -> list[Run]:
        """Return a run and all open sub-workflows below it."""
        found = [self.runs[run_id]]
        for run in found:  # grows while iterated
            children = (each.child for each in run.records if each is not None and each.child)
            found += [self.runs[each] for each in children if each in self.runs]
        return [run for run in found if run.status not in RUN_FINAL]

    # --- faults ---------------------------------------------------------------------------------

    def fault(self, run_id: UUID, error: Exception, *, asked: bool = False) -> None:
        """Forget the family of a run whose step raised, and what that step left to do."""
        gone = self.parts_of([self.root_of(run_id)])
        runs = [self.runs[each] for each in gone if each in self.runs]
        refs = frozenset(each.id for run in runs for each in run.records if each is not None)
        for each in gone:
            self.forget(each)
        self.fx.forget(gone)
        self.faults.append(Fault(tuple(gone), refs, error, asked))

    def fault_of(self, run_id: UUID) -> Fault | None:
        """Return the fault of a run in this event, if any."""
        return next((each for each in self.faults if run_id in each.run_ids), None)

    def _step(self, run_id: UUID, *, asked: bool = False) -> _Step:
        """Return a context for one step of a run, whose exceptions do not affect others."""
        return _Step(self, run_id, asked)

    def _is_gone(self, run_id: UUID) -> bool:
        """Return whether a run was forgotten in this event, so that nothing more is done for it."""
        return run_id not in self.runs

    def _is_faulty(self, ref: UUID) -> bool:
        """Return whether a node row is about to be reloaded, rather than unknown."""
        return any(ref in each.refs for each in self.faults)
