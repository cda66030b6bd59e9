"""The transitions that one event makes."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from services.orchestrator.domain.transition import Transition


class Out:
    """The transitions that an event makes, in the order in which they must be written."""

    __slots__ = ("_latest", "transitions")

    def __init__(self, *transitions: Transition) -> None:
        self.transitions = list(transitions)
        self._latest = {t.run_id: t for t in transitions}

    def add(self, t: Transition) -> None:
        """Add a transition behind the others."""
        self.transitions.append(t)
        self._latest[t.run_id] = t

    def before(self, t: Transition, earlier: Transition) -> None:
        """Add a transition of the same run right before another one."""
        self.transitions.insert(self.transitions.index(t), earlier)

    def of(self, run_id: UUID) -> Transition:
        """Give the transition of a run that more can be added to."""
        t = self._latest.get(run_id)
        if t is None:
            self.add(t := Transition(run_id))
        return t

    def drop(self, run_ids: Collection[UUID]) -> None:
        """Write nothing of runs that are forgotten."""
        self.transitions = [each for each in self.transitions if each.run_id not in run_ids]

    def after(self, run_id: UUID) -> Transition:
        """Give a transition of a run behind all others."""
        self.add(t := Transition(run_id))
        return t
