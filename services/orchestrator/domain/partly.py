"""Maps of which a new run keeps some elements, while the others run again."""

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
    """A map that begins with some of its elements ended."""

    place: int
    parts: tuple[KeptPart, ...]

    @property
    def size(self) -> int:
        """Count the results that are copied for it."""
        return sum(part.size for part in self.parts)


def kept_names(names: Mapping[str, NodeStatus]) -> list[str]:
    """Return the parts of a map that may be kept: those of elements without quarantined parts."""
    poisoned = {_element_of(name) for name, each in names.items() if each is not _DONE}
    return [name for name in names if _element_of(name) not in poisoned]


_DONE = NodeStatus.COMPLETED
COPIES_MAX: Final = 500  # rows copied by one flush, which delays all others


def _element_of(name: str) -> str:
    """Return the outermost element that contains a part: for `n[1][2]`, `n[1]`."""
    head, _, rest = name.partition("[")
    return f"{head}[{rest.partition(']')[0]}]"


def resume(run: Run, taken: Iterable[Partly], t: Transition, fx: Effects) -> None:
    """Begin maps with their kept elements; the missing ones begin as those of any map.

    A map that cannot be laid out is left alone, and fails when it begins.
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
    """Return whether a run copies more rows than one flush should."""
    return len(copies) + sum(each.size for each in partly) > COPIES_MAX


def spread(t: Transition, out: Out) -> None:
    """Split the copied rows of a run into several flushes, elements of maps first.

    The rows of the maps come with the last one: elements without a map's row show that a run was
    not completely inserted.
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
