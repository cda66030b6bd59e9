"""The transitions that result from one event."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from services.orchestrator.domain.transition import Transition


class Out:
    """The transitions of an event, in the order in which they must be written."""

    __slots__ = ("_latest", "transitions")

    def __init__(self, *transitions: Transition) -> None:
        self.transitions = list(transitions)
        self._latest = {t.run_id: t for t in transitions}

    def add(self, t: Transition) -> None:
        """Append a transition."""
        self.transitions.append(t)
        self._latest[t.run_id] = t

    def before(self, t: Transition, earlier: Transition) -> None:
        """Insert a transition of the same run right before another one."""
        self.transitions.insert(self.transitions.index(t), earlier)

    def of(self, run_id: UUID) -> Transition:
        """Return the latest transition of a run, to add changes to it."""
        t = self._latest.get(run_id)
        if t is None:
            self.add(t := Transition(run_id))
        return t

    def drop(self, run_ids: Collection[UUID]) -> None:
        """Drop the transitions of forgotten runs."""
        self.transitions = [each for each in self.transitions if each.run_id not in run_ids]

    def after(self, run_id: UUID) -> Transition:
        """Append a new transition of a run and return it."""
        self.add(t := Transition(run_id))
        return t
