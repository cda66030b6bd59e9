"""What waits for a limit: who holds its slots, how many come first, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Holder:
    """An execution that holds slots of a limit."""

    execution_id: UUID
    is_paused: bool = False  # and keeps its slot, as a run does that has begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """What of a run waits for slots of a limit, under one key."""

    limit: str
    nodes: Sequence[str]  # empty if the run itself waits
    own_id: UUID
    max_running: int | None = None
    taken: int = 0  # slots; some may not be in use yet
    holders: Sequence[Holder] = ()  # some of them
    holder_count: int = 0
    ahead: int = 0  # how many come before the first of these
    free_at: datetime | None = None  # when the rate allows the next start

    @property
    def is_full(self) -> bool:
        """Whether all slots are taken."""
        return self.max_running is not None and self.taken >= self.max_running


def situation(limited: Limited) -> str:
    """Describe what waits, and for what."""
    if limited.nodes:
        said = f"they wait for places under the limit {limited.limit}"
    else:
        said = f"the run waits for a place under the limit {limited.limit}"
    if limited.is_full:
        said += f"; {limited.taken} of {limited.max_running} are taken{_by(limited)}"
    elif limited.free_at is not None:
        said += "; its rate lets the next begin at the time that is given"
    if limited.ahead:
        return f"{said}; {limited.ahead} come first"
    return f"{said}; {'the first of them' if len(limited.nodes) > 1 else 'it'} is next"


def _by(limited: Limited) -> str:
    if limited.holder_count == 1 and limited.holders[:1] == [Holder(limited.own_id)]:
        return ", all by this run"
    if limited.holder_count == 1 and limited.holders:
        return f" by execution {limited.holders[0].execution_id}"
    ids = ", ".join(str(each.execution_id) for each in limited.holders)
    more = ", …" if limited.holder_count > len(limited.holders) else ""
    return f" by {limited.holder_count} executions ({ids}{more})" if ids else ""


def way_on(limited: Limited) -> str:
    """Describe the shortest action that helps."""
    raising = f"UpdateLimit with the name {limited.limit} lets more go on"
    if not limited.is_full:
        return f"wait, or {raising}"
    others = [each for each in limited.holders if each.execution_id != limited.own_id]
    if not others:
        return f"wait until one of them ends, or {raising}"
    first = others[0]
    if first.is_paused:
        keeps = f"ResumeExecution of {first.execution_id}, which is paused and keeps its place"
        return f"{keeps}; CancelExecution frees it; {raising}"
    frees = f"CancelExecution of {first.execution_id} frees what it has"
    return f"wait until one of them ends; {frees}; {raising}"
