"""Maps of which a new run takes over some elements and runs the others again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from services.orchestrator.domain.copies import copy_row
from services.orchestrator.domain.effects import Effects
from services.orchestrator.domain.groups import finish, new_group, pass_over
from services.orchestrator.domain.restore import split_name
from services.orchestrator.domain.rows import Transition
from services.orchestrator.domain.state import ListOutput, NodeOutput, Run
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.waits import Refusal
from services.orchestrator.domain.writes import place_row


@dataclass(frozen=True, slots=True)
class KeptPart:
    """An element that is taken over, with its own elements where it is a map itself."""

    number: int
    source_id: UUID  # the node execution that gave it
    output: NodeOutput | None  # of one that is no map
    parts: tuple[KeptPart, ...] = ()

    @property
    def size(self) -> int:
        """Count the rows that are copied for it."""
        return 1 + sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Partly:
    """A map that is begun with some of its elements over."""

    place: int
    parts: tuple[KeptPart, ...]


# Of a part: the row that has it, and what it gave where it is no map.
Parts: TypeAlias = "Mapping[str, tuple[UUID, NodeOutput | None]]"


def kept_names(names: Mapping[str, NodeStatus]) -> list[str]:
    """Give the parts of one map that may be kept: of elements in which nothing was put aside."""
    poisoned = {_element_of(name) for name, each in names.items() if each is not _DONE}
    return [name for name in names if _element_of(name) not in poisoned]


_DONE = NodeStatus.COMPLETED


def _element_of(name: str) -> str:
    """Give the outermost element that a part belongs to: of `n[1][2]` that is `n[1]`."""
    head, _, rest = name.partition("[")
    return f"{head}[{rest.partition(']')[0]}]"


def tree(map_name: str, parts: Parts) -> tuple[KeptPart, ...]:
    """Lay the kept parts of a map out as its elements, theirs within them."""
    within: dict[str, list[tuple[int, str]]] = {}
    for name in parts:
        above, number = split_name(name)
        within.setdefault(above, []).append((number, name))

    def below(name: str) -> tuple[KeptPart, ...]:
        return tuple(
            KeptPart(number, *parts[each], below(each))
            for number, each in sorted(within.get(name, ()))
        )

    return below(map_name)


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
        for part in each.parts:
            group.outputs[part.number] = _copy(run, each.place, part, t, fx)
        group.begun = len(each.parts)
        group.ahead = {part.number for part in each.parts}
        pass_over(group)
        if group.over:
            finish(run, group, t, fx)


def _copy(run: Run, above: int, part: KeptPart, t: Transition, fx: Effects) -> NodeOutput | None:
    """Write an element as it was; returns what it gave."""
    slot = run.add_part(above, part.number)
    done = NodeStatus.COMPLETED
    t.copy(copy_row(run, slot, part.source_id, done, new_id=fx.new_id, output=part.output))
    inner: Sequence[NodeOutput | None] = [_copy(run, slot, each, t, fx) for each in part.parts]
    return ListOutput(tuple(inner)) if run.is_group(slot) else part.output
