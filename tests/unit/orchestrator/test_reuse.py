"""What a run takes over from another: which results, and that its rows say the same as memory."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import replace
from itertools import count
from typing import Any
from uuid import UUID

import pytest

from services.orchestrator.domain import reuse
from services.orchestrator.domain.commands import AssignCommand
from services.orchestrator.domain.copies import tree, whole_names
from services.orchestrator.domain.credits import ReadyQueue
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.partly import Partly, kept_names
from services.orchestrator.domain.plan import Definition, Plan
from services.orchestrator.domain.records import NO_USAGE, Failure
from services.orchestrator.domain.reuse import Kept
from services.orchestrator.domain.rows import NodeCopy, RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RUN_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.transition import Transition
from tests.unit.orchestrator.graphs import StrictCore, plan_of, random_plan
from tests.unit.orchestrator.rich_graphs import Drawing
from tests.unit.orchestrator.store import Store
from tests.unit.orchestrator.worlds import same

TENANT, RUNNER = UUID(int=7), UUID(int=100)


class Bench:
    """A core with one runner, which answers when it is told to, and the rows that follow."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.ids = (UUID(int=number) for number in count(1000))
        self.store = Store()
        self.core = StrictCore(epoch=1, new_id=lambda: next(self.ids), draw=lambda: 0.5)
        self.core.unlocked = {UUID(int=at) for at in range(3)}
        self.core.attached(RUNNER, Offer(pythons=frozenset({"3.11"}), tier="T2"), {})
        self.core.granted(RUNNER, 1000, 1)
        self.assigned: list[AssignCommand] = []

    def start(
        self, plan: Plan, kept: tuple[Kept, ...] = (), partly: tuple[Partly, ...] = ()
    ) -> Run:
        run = Run(
            id=next(self.ids),
            plan=plan,
            tenant_id=TENANT,
            created_by=TENANT,
            status=RunStatus.PENDING,
            input_values={"x": b"1"},
            input_text='{"x":1}',
        )
        copies: list[NodeCopy] = reuse.take_over(run, kept, new_id=lambda: next(self.ids))
        row = RunInsert(
            run.id, plan.workflow_id, TENANT, TENANT, 1, None, plan.pins_id, 0, "pending", "{}",
            None, None, "3.11", None, 1,
        )  # fmt: skip
        self.apply(self.core.start(run, row, now=0.0, copies=copies, partly=partly))
        return run

    def apply(self, transitions: list[Transition]) -> None:
        for t in transitions:
            self.store.apply(t)
            self.assigned += [each for each in t.commands if isinstance(each, AssignCommand)]

    def answer(self, run: Run, *, fails: float = 0.0, failing: Collection[int] = ()) -> None:
        """Answer all attempts of a run until nothing runs, each failing with this chance."""
        while self.assigned:
            self.answer_one(run, fails=fails, failing=failing)

    def answer_one(self, run: Run, *, fails: float, failing: Collection[int] = ()) -> None:
        """Answer one attempt of those that run; some places always fail."""
        command = self.assigned.pop(self.chance.randrange(len(self.assigned)))
        record = run.records[command.slot]
        assert record is not None
        result: tuple[bytes, ...] | Failure = (str(command.slot).encode(),)
        if self.chance.random() < fails or command.slot in failing:
            result = Failure(error_type="user_error", message="no", retryable=False)
        outcome = Outcome(record.id, command.token, result, NO_USAGE)
        self.apply(self.core.outcomes(RUNNER, [outcome], now=0.0))


@pytest.mark.parametrize("seed", range(200))
def test_a_run_that_keeps_results_is_what_its_rows_say(seed: int) -> None:
    """Rule 6: from the first flush on, whatever was kept; and it ends as a whole run does."""
    bench = Bench(seed)
    plan = random_plan(bench.chance, size=bench.chance.randint(2, 14))
    parent = bench.start(plan)
    bench.answer(parent, fails=0.2)
    begin = {at for at in range(len(plan.places)) if bench.chance.random() < 0.2}
    lost = reuse.below(plan, begin)
    there = {
        at: record
        for at, record in enumerate(parent.records)
        if record is not None and record.status is NodeStatus.COMPLETED and at not in lost
    }
    places = reuse.closed(plan, list(there))
    kept = tuple(Kept(at, there[at].id, (str(at).encode(),)) for at in places)
    if len(kept) == len(plan.places):
        return
    child = bench.start(plan, kept)
    assert bench.store.restore(child.id, plan) == child
    assert all(child.records[at] is not None for at in places)
    bench.answer(child, fails=0.0)
    assert RunStatus.COMPLETED == child.status
    ran = {node["node_id"] for node in bench.store.nodes.values() if node["run_id"] == child.id}
    assert {place.id for place in plan.places} == ran
    whole = bench.start(plan)
    bench.answer(whole, fails=0.0)
    assert whole.output_data == child.output_data


@pytest.mark.parametrize("seed", range(100))
def test_a_map_that_is_taken_over_in_part_is_what_its_rows_say(seed: int) -> None:
    """Rule 6, from the first flush to the last: holes are filled in order, within the window."""
    bench = Bench(seed)
    depth = bench.chance.randint(1, 2)
    drawing = Drawing(bench.chance)
    window = bench.chance.randint(1, 3)
    rule = {"input": "x", "depth": depth, "max_in_flight": window, "max_failed": 9}
    values = "[1,2,3,4,5,6]" if depth == 1 else "[[1,2],[],[3],[4,5,6]]"
    drawing.node(map=rule, parameters={"x": values})
    drawing.order("n0", drawing.node(on_failure="continue"))
    plan = drawing.plan()
    parent = bench.start(plan)
    bench.answer(parent, fails=0.4)
    assert RunStatus.COMPLETED == parent.status
    rows = {node["node_id"]: node for node in bench.store.nodes.values()}
    names = {
        name: NodeStatus(node["status"])
        for name, node in rows.items()
        if name not in plan.index and node["definition_node_id"] == "n0"
    }
    kept = kept_names(names)
    poisoned = [name for name, status in names.items() if status is NodeStatus.QUARANTINED]
    assert not any(name.startswith(each.split("]")[0]) for each in poisoned for name in kept)
    outputs = {
        name: (rows[name]["id"], tuple((rows[name]["output"] or {}).values()), None)
        for name in kept
    }
    partly = (Partly(0, tree("n0", outputs)),)
    child = bench.start(plan, (), partly)
    assert bench.store.restore(child.id, plan) == child
    while bench.assigned:
        assert depth > 1 or len(bench.assigned) <= window
        bench.answer_one(child, fails=0.1)
        if child.status not in RUN_FINAL:
            rows_say = bench.store.restore(child.id, plan)
            same(child, rows_say)
            for slot, group in child.groups.items():  # who waits for a credit, no row says
                assert replace(group, queued=False) == rows_say.groups[slot]
    assert RunStatus.COMPLETED == child.status
    whole = {name for name, node in rows.items() if node["run_id"] == parent.id}
    again = {n["node_id"] for n in bench.store.nodes.values() if n["run_id"] == child.id}
    assert whole == again
    copied = [n for n in bench.store.nodes.values() if n.get("source_id")]
    assert set(kept) == {node["node_id"] for node in copied}


@pytest.mark.parametrize("seed", range(100))
def test_a_completed_map_is_taken_over_as_it_is(seed: int) -> None:
    """With the elements that it put aside, which do not run again, and its rows say the same."""
    bench = Bench(seed)
    depth = bench.chance.randint(1, 2)
    drawing = Drawing(bench.chance)
    values = "[1,2,3,4,5,6]" if depth == 1 else "[[1,2],[],[3],[4,5,6]]"
    rule = {"input": "x", "depth": depth, "max_failed": 9}
    drawing.node(map=rule, parameters={"x": values})
    drawing.data("n0", drawing.node(), "x")
    plan = drawing.plan()
    parent = bench.start(plan)
    bench.answer(parent, fails=0.3, failing={1})
    rows = {node["node_id"]: node for node in bench.store.nodes.values()}
    statuses = {
        name: NodeStatus(node["status"]) for name, node in rows.items() if name not in plan.index
    }
    there = {
        name: (
            rows[name]["id"],
            tuple((rows[name]["output"] or {}).values()),
            rows[name]["failure"],
        )
        for name in whole_names(statuses)
    }
    held = (b"[]",) if seed % 2 else None  # a short list has its own row too, and the same rows
    child = bench.start(plan, (Kept(0, rows["n0"]["id"], held, tree("n0", there)),))
    same(child, bench.store.restore(child.id, plan))
    assert [1] == [each.slot for each in bench.assigned]
    assert statuses.keys() >= there.keys()
    assert {name: statuses[name] for name in there} == {
        child.node_id(slot): record.status
        for slot, record in enumerate(child.records)
        if record is not None and slot > 1
    }
    assert parent.outputs[0] == child.outputs[0]
    bench.answer(child)
    assert RunStatus.COMPLETED == child.status


def test_what_was_put_aside_is_kept_without_what_is_within() -> None:
    done, aside = NodeStatus.COMPLETED, NodeStatus.QUARANTINED
    names = {"n[0]": done, "n[0][0]": aside, "n[0][1]": done, "n[1]": aside, "n[1][0]": done}
    assert ["n[0]", "n[0][0]", "n[0][1]", "n[1]"] == whole_names(names)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_was_taken_over_is_undone_in_the_order_in_which_it_was_made(
    order: tuple[int, ...],
) -> None:
    """The last one first, however places are declared; over a restart too."""
    bench = Bench(0)
    drawing = Drawing(bench.chance)
    one, two, last = (drawing.node(parameters={"x": "1"}) for _ in range(3))
    undo = {0: drawing.node(compensates=one), 1: drawing.node(compensates=two)}
    drawing.order(one, last)
    drawing.order(two, last)
    plan = drawing.plan()
    parent = bench.start(plan)
    bench.answer(parent)
    kept = tuple(Kept(at, parent.records[at].id, (b"1",)) for at in order)  # type: ignore[union-attr]
    child = bench.start(plan, kept)
    bench.answer_one(child, fails=1.0)
    undone = []
    while bench.assigned:
        assert child.undo == bench.store.restore(child.id, plan).undo
        undone.append(plan.places[bench.assigned[0].slot].id)
        bench.answer_one(child, fails=0.0)
    assert [undo[at] for at in reversed(order)] == undone


@pytest.mark.parametrize("cancels", [False, True])
def test_what_is_settled_is_not_undone_and_the_rows_say_the_same(*, cancels: bool) -> None:
    """One of two is anybody else's; the rows tell that the main part is not over for it."""
    bench = Bench(0)
    drawing = Drawing(bench.chance)
    one, two, last = (drawing.node(parameters={"x": "1"}) for _ in range(3))
    undo_one, undo_two = drawing.node(compensates=one), drawing.node(compensates=two)
    drawing.order(one, last)
    drawing.order(two, last)
    plan = drawing.plan()
    at = plan.index
    parent = bench.start(plan)
    bench.answer(parent)
    ids = [parent.records[each].id for each in (0, 1)]  # type: ignore[union-attr]
    settled = (Kept(0, ids[0], (b"1",), (), (at[undo_one],)), Kept(1, ids[1], (b"1",)))
    child = bench.start(plan, settled)
    assert not child.closing
    assert bench.store.restore(child.id, plan) == child
    if cancels:
        bench.apply(bench.core.cancel(child.id))
    bench.answer_one(child, fails=1.0)
    assert bench.store.restore(child.id, plan).seeded == child.seeded == {at[undo_two]}
    assert [at[undo_two]] == [each.slot for each in bench.assigned]
    bench.answer(child)
    assert (RunStatus.CANCELLED if cancels else RunStatus.FAILED) == child.status
    assert "skipped" == ends(child)[undo_one]
    assert "completed" == ends(child)[undo_two]


def branching_plan(chance: random.Random) -> Plan:
    """Draw a graph of choices, conditions, joins and edges of failure."""
    drawing = Drawing(chance)
    drawing.data("", drawing.node(), "x", "x")
    kinds: list[str] = [""]
    while len(kinds) < chance.randint(3, 14):
        what: dict[str, Any] = {"parameters": {"x": chance.choice(("1", "2"))}}
        kind = "choice" if chance.random() < 0.25 else ""
        if kind:
            branches = [{"name": "one", "condition": "x == 1"}]
            what["kind"], what["choice"] = kind, {"branches": branches, "default": "other"}
        elif chance.random() < 0.2:
            what["condition"] = "x == 1"
        sources = chance.sample(range(len(kinds)), min(len(kinds), chance.choice((1, 1, 2, 3))))
        policy = chance.choice(("all", "all", "any", "n_of", "all_done"))
        what["join"] = {"policy": policy, "count": chance.randint(1, len(sources))}
        if chance.random() < 0.2:
            what["on_failure"] = "continue"
        name = drawing.node(**what)
        for source in sources:
            if kinds[source]:
                drawing.order(f"n{source}", name, "branch", chance.choice(("one", "other")))
            else:
                kind_of_edge = "failure" if chance.random() < 0.2 else "order"
                drawing.order(f"n{source}", name, kind_of_edge)
        kinds.append(kind)
    return drawing.plan()


def ends(run: Run) -> dict[str, str]:
    return {
        run.plan.places[at].id: record.status
        for at, record in enumerate(run.records)
        if record is not None
    }


@pytest.mark.parametrize("seed", range(300))
def test_what_was_skipped_stands_where_it_would_be_skipped_again(seed: int) -> None:
    """Against a whole run in which the same places fail: every place ends as it does there."""
    bench = Bench(seed)
    plan = branching_plan(bench.chance)
    failing = {at for at in range(len(plan.places)) if bench.chance.random() < 0.2}
    parent = bench.start(plan)
    bench.answer(parent, failing=failing)
    begin = {at for at in range(len(plan.places)) if bench.chance.random() < 0.1}
    lost = reuse.below(plan, begin)
    stands = (NodeStatus.COMPLETED, NodeStatus.SKIPPED)
    there = {
        at: record
        for at, record in enumerate(parent.records)
        if record is not None and record.status in stands and at not in lost
    }
    places = reuse.closed(plan, list(there))
    if len(places) == len(plan.places):
        return
    # What was not taken over may end well this time; what is handled still fails.
    failing = {at for at in failing if plan.places[at].handled}
    outputs = {node["id"]: node["output"] for node in bench.store.nodes.values()}
    kept = tuple(
        Kept(at, there[at].id, tuple(given.values()) if (given := outputs[there[at].id]) else None)
        for at in places
    )
    child = bench.start(plan, kept)
    if child.status not in RUN_FINAL:
        assert bench.store.restore(child.id, plan) == child
    assert not set(places) & {each.slot for each in bench.assigned}
    bench.answer(child, failing=failing)
    whole = bench.start(plan)
    bench.answer(whole, failing=failing)
    assert RunStatus.COMPLETED == child.status == whole.status
    assert ends(whole) == ends(child)
    assert whole.output_data == child.output_data


def test_elements_are_kept_in_their_order_whenever_each_of_them_ended() -> None:
    """Of a map of maps too: what was tried again has its row behind those of later elements."""
    names = ("m[1]", "m[10]", "m[2]", "m[1][2]", "m[1][0]")
    parts = {name: (UUID(int=at), None, None) for at, name in enumerate(names)}
    kept = tree("m", parts)
    assert [1, 2, 10] == [each.number for each in kept]
    assert [0, 2] == [each.number for each in kept[0].parts]


def test_a_result_stands_only_while_all_it_was_made_of_stands() -> None:
    """a → b → c: without a, b and c are made anew, whatever they gave before."""
    plan = plan_of([(0, 1), (1, 2)], 3)
    assert [] == reuse.closed(plan, [1, 2])
    assert [0] == reuse.closed(plan, [0, 2])
    assert [0, 1, 2] == reuse.closed(plan, [0, 1, 2])


def test_outputs_that_nobody_reads_again_take_no_memory() -> None:
    """a → b → c, with a and b kept: only what c reads is held."""
    bench = Bench(0)
    plan = plan_of([(0, 1), (1, 2)], 3)
    parent = bench.start(plan)
    bench.answer(parent, fails=0.0)
    kept = tuple(
        Kept(at, record.id, (b"1",))
        for at, record in enumerate(parent.records[:2])
        if record is not None
    )
    child = bench.start(plan, kept)
    assert {1} == set(child.outputs)


def test_a_graph_of_ten_thousand_in_a_row_is_walked_without_recursion() -> None:
    """B49."""
    plan = plan_of([(at, at + 1) for at in range(9_999)], 10_000)
    assert 10_000 == len(reuse.below(plan, [0]))
    assert list(range(9_999)) == reuse.closed(plan, range(9_999))


def test_new_inputs_take_the_place_of_all_that_fed_them() -> None:
    definition = Definition(
        workflow_id=UUID(int=1),
        version=1,
        nodes=[
            {"id": "a", "parameters": {"p": "1"}, "variables": {"v": "name", "w": "other"}},
            {"id": "b"},
        ],
        connections=[
            {"source": "", "source_output": "x", "target": "a", "target_input": "x"},
            {"source": "a", "source_output": "result", "target": "b", "target_input": "x"},
        ],
        settings={},
        input_types=[],
        output_types=[],
    )
    changed = reuse.edited(definition, {"a": {"x": "5", "v": "6"}})
    assert {"p": "1", "x": "5", "v": "6"} == changed.nodes[0]["parameters"]
    assert {"w": "other"} == changed.nodes[0]["variables"]
    assert ["b"] == [each["target"] for each in changed.connections]
    assert definition.nodes[1] is changed.nodes[1]
    assert definition is reuse.edited(definition, {})


def test_changed_inputs_are_told_by_their_exact_texts() -> None:
    before = {"a": b"1", "b": b"2", "c": b"3"}
    assert {"b", "c", "d"} == reuse.changed_inputs(before, {"a": b"1", "b": b"2.0", "d": b"4"})


@pytest.mark.parametrize("seed", range(50))
def test_the_queue_gives_by_priority_and_in_turns(seed: int) -> None:
    """Against a model: the highest level first, and there the run that waited longest."""
    chance = random.Random(seed)
    queue, model = ReadyQueue(), list[tuple[int, UUID, int]]()
    runs = {UUID(int=at): chance.choice((-100, 0, 0, 7)) for at in range(4)}
    since = dict[UUID, int]()  # when a run began to wait for its turn
    for now in range(300):
        roll = chance.random()
        if roll < 0.5:
            run_id, place = chance.choice(list(runs)), chance.randrange(1000)
            if all(each[1] != run_id for each in model):
                since[run_id] = now
            queue.push(run_id, place, "3.11", priority=runs[run_id])
            model.append((runs[run_id], run_id, place))
        elif roll < 0.95:
            found = queue.take(Offer(pythons=frozenset({"3.11"}), tier="T2"))
            if not model:
                assert found is None
                continue
            assert found is not None
            highest = max(priority for priority, _, _ in model)
            able = [run_id for priority, run_id, _ in model if priority == highest]
            assert min(able, key=lambda each: since[each]) == found[0]
            since[found[0]] = now
            firsts = {run_id: place for _, run_id, place in reversed(model)}
            assert firsts[found[0]] == found[1], "places of a run keep their order"
            model.remove((highest, *found))
        else:
            run_id = chance.choice(list(runs))
            queue.forget(run_id)
            model = [each for each in model if each[1] != run_id]
        assert len(model) == queue.size
    for run_id in runs:
        queue.forget(run_id)
    assert ({}, 0) == (queue._by_need, queue.size)
