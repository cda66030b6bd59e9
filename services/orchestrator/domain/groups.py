"""Maps and loops: groups, which run one node as many parts, and have a row of their own.

Elements begin in order, as runners have credits and `max_in_flight` allows; each gets its slot and
row only then. A turn of a loop begins when the previous one has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from services.kit.cel import ExpressionError
from services.orchestrator.domain import waits
from services.orchestrator.domain.effects import Effects, Ready
from services.orchestrator.domain.history import flow_rows
from services.orchestrator.domain.plan import Binding, Kind, Plan
from services.orchestrator.domain.records import NO_USAGE, Failure
from services.orchestrator.domain.state import Group, Run
from services.orchestrator.domain.status import NODE_FINAL, NodeStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.values import (
    FileList,
    FilePart,
    FileValue,
    ListOutput,
    NodeOutput,
    Spliced,
    UnreadableError,
    Value,
    has_files,
)
from services.orchestrator.domain.waits import Refusal
from services.orchestrator.domain.writes import place_row

ELEMENTS_MAX: Final = 1_000_000
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


def begin(run: Run, slot: int, t: Transition, fx: Effects) -> bool:
    """Begin a map or loop; returns whether it has ended already, having nothing to do."""
    group = new_group(run, slot)
    place_row(run, slot, t, NodeStatus.WAITING, new_id=fx.new_id, token=fx.next_token())
    run.groups[slot] = group
    fill(run, group, t, fx)
    return group.over and slot in run.groups


def new_group(run: Run, slot: int) -> Group:
    """Return a new group of which nothing has begun."""
    place = run.place(slot)
    if place.loop is not None:
        return Group(slot, count=place.loop.max_turns, window=1)
    rule = place.map
    assert rule is not None
    binding = next(each for each in place.inputs if each.name == rule.input)
    elements = _elements(run, slot, binding)
    count = len(elements.items) if isinstance(elements, ListOutput) else len(elements)
    if count > ELEMENTS_MAX:
        raise Refusal("map_too_large", f"{count} elements, the maximum is {ELEMENTS_MAX}")
    return Group(
        slot,
        count=count,
        window=rule.max_in_flight,
        allowed=rule.allowed(count),
        elements=elements,
        source=binding,
    )


def _elements(run: Run, slot: int, binding: Binding) -> Sequence[bytes] | FileList | ListOutput:
    """Return the list that a group maps over: an input, or an element of the outer map."""
    part = run.part(slot)
    if part is None:
        output = run.outputs.get(binding.source) if binding.source >= 0 else None
        if isinstance(output, ListOutput):
            return output
        value = run.given(binding)
    else:
        above = run.groups[part.group]
        if isinstance(above.elements, ListOutput):
            item = above.elements.items[part.number]
            if isinstance(item, ListOutput):
                return item
        at = [each.name for each in run.bindings(slot)].index(binding.name)
        value = run.value(slot, at)
    return split_list(value, binding.name)


def split_list(value: Value | None, name: str) -> Sequence[bytes] | FileList:
    """Return the exact texts of the elements of a JSON list, or the count of a list in a file."""
    if isinstance(value, FilePart):
        return _counted(value, name)
    assert not isinstance(value, Spliced), "what elements gave is mapped over as it is"
    if value is None or value == b"null":
        return []
    try:
        return [bytes(each) for each in _LIST.decode(value)]
    except msgspec.DecodeError:
        raise Refusal("type_error", f"{name}: not a list") from None


def _counted(value: FilePart, name: str) -> FileList:
    """Return a list in a file, with the count that the runner reported: it is never read here."""
    count = value.file.counts.get(value.field)
    if value.index is not None:
        message = "the list is an element of one above 64 KiB, and only whole lists are counted"
        raise Refusal("map_too_large", f"{name}: {message}")
    if count is None:
        message = "not a list, or one in a file whose elements were too many to be counted"
        raise Refusal("map_too_large", f"{name}: {message}")
    return FileList(value.file, value.field, count)


def fill(run: Run, group: Group, t: Transition, fx: Effects) -> None:
    """Begin parts that may begin now; those that need a runner are queued."""
    slot = group.slot
    if group.filling or not run.may_begin(slot) or not group.room:
        return
    leaf = run.place(slot).loop is not None or not _nests(run, slot)
    if leaf and run.place(slot).kind is Kind.PYTHON:
        if not group.queued:
            group.queued = True
            fx.ready.append(Ready(run, slot))
        return
    group.filling = True  # a part refused at once ends within this loop, which begins the next
    while group.room and run.may_begin(slot) and slot in run.groups:
        part = next_part(run, group)
        if leaf:
            try:
                waits.begin_child(run, part, t, fx)
            except Refusal as refusal:
                refuse(run, part, t, fx, refusal.failure)
        else:
            _begin_nested(run, part, t, fx)
    group.filling = False


def _nests(run: Run, slot: int) -> bool:
    rule = run.place(slot).map
    return rule is not None and run.depth(slot) + 1 < rule.depth


def _begin_nested(run: Run, part: int, t: Transition, fx: Effects) -> None:
    try:
        group = new_group(run, part)
    except Refusal as refusal:
        refuse(run, part, t, fx, refusal.failure)
        return
    place_row(run, part, t, NodeStatus.WAITING, new_id=fx.new_id, token=fx.next_token())
    run.groups[part] = group
    fill(run, group, t, fx)
    if group.over and part in run.groups:
        finish(run, group, t, fx)


def refuse(run: Run, part: int, t: Transition, fx: Effects, failure: Failure) -> None:
    """Record a part that cannot begin as failed or quarantined."""
    status = failed_status(run, part)
    place_row(run, part, t, status, new_id=fx.new_id, token=fx.next_token(), failure=failure)
    part_over(run, part, t, fx, None, failure=failure)


def next_part(run: Run, group: Group) -> int:
    """Add the slot of the next element or turn."""
    first = 0 if run.place(group.slot).map is not None else 1
    part = run.add_part(group.slot, group.begun - len(group.ahead) + first)
    group.begun += 1
    group.open += 1
    pass_over(group)
    return part


def pass_over(group: Group) -> None:
    """Skip elements that have a slot already, such as kept ones."""
    while (number := group.begun - len(group.ahead)) in group.ahead:
        group.ahead.remove(number)


def failed_status(run: Run, slot: int) -> NodeStatus:
    """Return the status of a slot that failed for good: quarantined if its map tolerates that."""
    part = run.part(slot)
    group = run.groups.get(part.group) if part is not None else None
    tolerated = group is not None and group.failed < group.allowed
    return NodeStatus.QUARANTINED if tolerated else NodeStatus.FAILED


def part_left(run: Run, slot: int) -> None:
    """Record that an element or turn will not be retried because its run ends."""
    part = run.part(slot)
    group = run.groups.get(part.group) if part is not None else None
    if part is not None and group is not None:
        group.open -= 1
        group.outputs[part.number] = None
        if run.place(slot).loop is not None:
            group.outputs.pop(part.number - 1, None)


def part_over(
    run: Run,
    slot: int,
    t: Transition,
    fx: Effects,
    output: NodeOutput | None,
    *,
    failure: Failure | None = None,
) -> None:
    """Handle the end of an element or turn: the group continues or ends."""
    part = run.part(slot)
    assert part is not None
    group = run.groups.get(part.group)
    record = run.records[part.group]
    if group is None or record is None or record.status in NODE_FINAL:
        return  # the group failed before, while this part was still running
    group.open -= 1
    group.outputs[part.number] = output
    if failure is not None:
        group.failed += 1
        if group.failed > group.allowed:
            fail(run, group, t, fx, failure)
            return
    elif run.place(slot).loop is not None:
        _turn_over(run, group, part.number, t, fx)
        return
    if group.over:
        finish(run, group, t, fx)
    else:
        fill(run, group, t, fx)


def _turn_over(run: Run, group: Group, turn: int, t: Transition, fx: Effects) -> None:
    rule = run.place(group.slot).loop
    assert rule is not None
    group.outputs.pop(turn - 1, None)  # only the last turn is read
    try:
        again = rule.condition.holds(_turn_values(run, group, turn))
    except (ExpressionError, UnreadableError) as error:
        refused = waits.refusal(run, group.slot, "condition_error", error, "loop: ")
        fail(run, group, t, fx, refused.failure)
        return
    if again and group.begun < group.count:
        fill(run, group, t, fx)
    elif again and rule.fails_at_max:
        message = f"the condition still holds after {group.count} turns"
        fail(run, group, t, fx, Failure(error_type="loop_exhausted", message=message))
    else:
        finish(run, group, t, fx)


def _turn_values(run: Run, group: Group, turn: int) -> dict[str, bytes]:
    """Return the values for a loop's condition: the turn's inputs, outputs and number."""
    place = run.place(group.slot)
    assert place.loop is not None
    names, carry = place.loop.condition.names, place.loop.carry
    output = group.outputs[turn]
    read = names - carry.keys() - {*place.outputs}
    values = waits.read_by_condition(run, group.slot, read)
    if isinstance(output, FileValue):
        large = sorted(names & {*carry, *place.outputs})
        if large:
            message = "are larger than the engine reads (64 KiB), and its condition reads"
            raise UnreadableError(f"the turn's outputs {message} {', '.join(large)}")
    elif isinstance(output, tuple):
        values |= {name: output[at] for name, at in carry.items()}
        values |= dict(zip(place.outputs, output, strict=True))
    values["turn"] = str(turn).encode()
    return values


def finish(run: Run, group: Group, t: Transition, fx: Effects) -> None:
    """Complete a group with the outputs of its parts."""
    output = output_of(run, group)
    place = run.plan.places[run.place_of(group.slot)]
    if has_files(output) and is_answer(run.plan, run.place_of(group.slot)):
        message = f"an element of {place.id} gave more than 64 KiB, and its list is an output of"
        message += " the workflow; let a node join it to one large value, which becomes a file"
        fail(run, group, t, fx, Failure(error_type="output_too_large", message=message))
        return
    run.groups.pop(group.slot, None)
    place_row(
        run,
        group.slot,
        t,
        NodeStatus.COMPLETED,
        new_id=fx.new_id,
        token=0,
        output=output,
    )
    flow_rows(run, group.slot, t, NO_USAGE, fx.new_id)
    fx.over.append((group.slot, output, None))


def output_of(run: Run, group: Group) -> NodeOutput:
    """Return the output of a group: lists of its parts' outputs, or those of the last turn."""
    if run.place(group.slot).loop is not None:
        last = group.outputs[max(group.outputs)]
        assert last is not None
        return last
    return ListOutput(tuple(group.outputs.get(at) for at in range(group.count)))


def is_answer(plan: Plan, place: int) -> bool:
    """Return whether a place feeds an output of the run."""
    return any(output.source == place for output in plan.outputs)


def fail(run: Run, group: Group, t: Transition, fx: Effects, failure: Failure) -> None:
    """Fail a group: its running parts end, and none is retried."""
    run.groups.pop(group.slot, None)
    end_parts(run, group.slot, t, fx)
    status = failed_status(run, group.slot)
    place_row(run, group.slot, t, status, new_id=fx.new_id, token=0, failure=failure)
    fx.over.append((group.slot, None, failure))


def end_parts(run: Run, slot: int, t: Transition, fx: Effects) -> None:
    """End the parts of a group that wait for a retry; running ones end by themselves.

    In a part that is a sub-workflow nothing new begins.
    """
    size = len(run.plan.places)
    for at, part in enumerate(run.parts):
        record = run.records[size + at]
        if part.group != slot or record is None:
            continue
        if record.status is NodeStatus.RETRYING:
            waits.stop_waiting(run, size + at, t, NodeStatus.CANCELLED)
        elif size + at in run.groups:
            del run.groups[size + at]
            waits.stop_waiting(run, size + at, t, NodeStatus.CANCELLED)
            end_parts(run, size + at, t, fx)
        else:
            waits.fail_child(run, size + at, fx)
