"""Maps that a new run takes over in part: some elements are kept, the others run again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from services.orchestrator.domain.copies import KeptPart, copy_part
from services.orchestrator.domain.effects import Effects
from services.orchestrator.domain.groups import finish, new_group, pass_over
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.rows import NodeCopy
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.waits import Refusal
from services.orchestrator.domain.writes import place_row


@dataclass(frozen=True, slots=True)
class Partly:
    """A map that is begun with some of its elements over."""

    place: int
    parts: tuple[KeptPart, ...]

    @property
    def size(self) -> int:
        """Count the results that are copied for it."""
        return sum(part.size for part in self.parts)


def kept_names(names: Mapping[str, NodeStatus]) -> list[str]:
    """Give the parts of one map that may be kept: of elements in which nothing was put aside."""
    poisoned = {_element_of(name) for name, each in names.items() if each is not _DONE}
    return [name for name in names if _element_of(name) not in poisoned]


_DONE = NodeStatus.COMPLETED
COPIES_MAX: Final = 500  # rows that one flush copies: it holds up all others meanwhile


def _element_of(name: str) -> str:
    """Give the outermost element that a part belongs to: of `n[1][2]` that is `n[1]`."""
    head, _, rest = name.partition("[")
    return f"{head}[{rest.partition(']')[0]}]"


def resume(run: Run, taken: Iterable[Partly], t: Transition, fx: Effects) -> None:
    """Begin maps with what is over of them; what is missing begins as the elements of any map.

    One that cannot be laid out is left as if nothing of it were there, and fails as it begins.
    """
    for each in taken:
        try:
            group = new_group(run, each.place)
        except Refusal:
            continue
        place_row(run, each.place, t, NodeStatus.WAITING, new_id=fx.new_id, token=fx.next_token())
        run.groups[each.place] = group
        rows: list[NodeCopy] = []
        for part in each.parts:
            output = copy_part(run, each.place, part, rows, new_id=fx.new_id)
            group.outputs[part.number] = output
        for row in rows:
            t.copy(row)
        group.begun = len(each.parts)
        group.ahead = {part.number for part in each.parts}
        pass_over(group)
        if group.over:
            finish(run, group, t, fx)


def takes_many(copies: Collection[NodeCopy], partly: Iterable[Partly]) -> bool:
    """Whether a run takes over more than one flush should copy."""
    return len(copies) + sum(each.size for each in partly) > COPIES_MAX


def spread(t: Transition, out: Out) -> None:
    """Have what a run takes over written by several flushes, the elements of maps first.

    A map's own row comes with the last, as all that follows from it: a run whose elements have none
    was never made whole.
    """
    copies, t.copies, t.file_uses = t.copies, (), ()
    parts = []
    for each in copies:
        row = each._replace(first=False)
        if row.node_id == row.definition_node_id:
            t.copy(row)
        else:
            parts.append(row)
    for at in range(0, len(parts), COPIES_MAX):
        some = Transition(t.run_id, begins=True)
        for row in parts[at : at + COPIES_MAX]:
            some.copy(row)
        out.before(t, some)
    t.begun_whole = True
