"""What whole worlds have found in the core, each as small as it can be told."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.orchestrator.domain import children, planner
from services.orchestrator.domain.amounts import Amounts
from services.orchestrator.domain.children import EndedChild
from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.ledger import Budget
from services.orchestrator.domain.limits import Claim, Demand, Limit
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.plan import Definition, Kind, NodeVersion, Plan
from services.orchestrator.domain.records import NO_USAGE, Failure, Usage, detail_of_class
from services.orchestrator.domain.state import Run, Signal
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.timers import BEGIN, DEADLINE
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine.journal import Journal
from services.orchestrator.storage import recovery
from tests.unit.orchestrator.graphs import INT, StrictCore
from tests.unit.orchestrator.store import Store
from tests.unit.orchestrator.test_core import ONE, PYTHONS, TENANT, new_core, start

USED = ("cpu_us", "memory_peak_bytes", "io_read_bytes", "io_write_bytes")
_PINS = count(5000)
_IDS = count(900_000)


def plan_of(
    *nodes: dict[str, Any],
    edges: tuple[tuple[int, int, str], ...] = (),
    inner: Plan | None = None,
) -> Plan:
    """Compile nodes n0, n1, …, with edges from one to another, of data where an input is named."""
    placed = [{"id": f"n{at}", "parameters": {"x": "1"}, **node} for at, node in enumerate(nodes)]
    connections = [
        {
            "source": f"n{source}",
            "source_output": "result" if name else "",
            "target": f"n{target}",
            "target_input": name,
            "kind": "data" if name else "order",
        }
        for source, target, name in edges
    ]
    versions = {
        node["id"]: NodeVersion(
            id=UUID(int=at), python_version="3.11", output_types=[{"name": "result", "type": INT}]
        )
        for at, node in enumerate(placed)
        if "kind" not in node
    }
    definition = Definition(
        workflow_id=UUID(int=next(_PINS)),
        version=1,
        nodes=placed,
        connections=connections,
        settings={},
        input_types=[],
        output_types=[],
    )
    subs = {each["id"]: inner for each in placed if inner and each.get("kind") == "workflow"}
    return compile_plan(definition, versions, pins_id=UUID(int=next(_PINS)), plans=subs)


def answer(core: Core, run: Run, slot: int, result: Any = (b"1",)) -> list[Transition]:
    record = run.records[slot]
    assert record is not None
    return core.outcomes(ONE, [Outcome(record.id, record.token, result, NO_USAGE)], now=0.0)


def test_a_finally_node_without_an_environment_fails_and_does_not_hold_its_run_up() -> None:
    core = new_core((ONE, 1))
    run = start(core, plan_of({}, *({} for _ in range(3)), {"phase": "finally"}))
    for slot in range(4):
        core.unlocked.add(UUID(int=slot))
    core.lock_known(UUID(int=3), None)
    for slot in range(4):
        answer(core, run, slot)
    assert RunStatus.RUNNING == run.status
    core.lock_known(UUID(int=4), Failure(error_type="dependency_error", message="no such package"))
    last = run.records[4]
    assert last is not None
    assert (RunStatus.FAILED, NodeStatus.FAILED) == (run.status, last.status)


def test_a_paused_run_that_is_cancelled_closes_without_being_resumed() -> None:
    core = new_core()
    run = start(core, plan_of({}, {"phase": "finally"}))
    core.pause(run.id)
    core.cancel(run.id)
    core.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), {})
    core.granted(ONE, 1, 1)
    answer(core, run, 1)
    assert RunStatus.CANCELLED == run.status


def test_a_run_that_was_cancelled_while_it_closed_is_read_from_its_rows_as_that() -> None:
    core = new_core((ONE, 1))
    run, written = _started(core, plan_of({}, {"phase": "finally"}))
    written += answer(core, run, 0)
    written += core.cancel(run.id)
    assert [True, True] == [run.abandoned, _restored(run, written).abandoned]


def test_a_run_whose_time_was_up_is_read_as_that_in_the_words_of_an_earlier_release() -> None:
    core = new_core((ONE, 1))
    run, written = _started(core, plan_of({}, {"phase": "finally"}))
    core.timers.set(1.0, run.id, DEADLINE)
    written += core.due(now=2.0)
    store = _stored(written)
    change = store.runs[run.id]["change"]
    assert "deadline_exceeded" == change.error_type
    store.runs[run.id]["change"] = change._replace(error_message="in other words")
    assert [True, True] == [run.expired, store.restore(run.id, run.plan).expired]


def test_what_closes_a_run_after_its_cancel_is_read_from_its_rows_as_that() -> None:
    core = new_core()
    run, written = _started(core, plan_of({}, {"phase": "finally"}))
    written += core.cancel(run.id)
    written += core.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), {})
    written += core.granted(ONE, 1, 1)
    assert run.records[1] is not None
    assert [False, False] == [run.abandoned, _restored(run, written).abandoned]


def test_a_map_that_was_held_up_before_its_list_was_there_has_its_elements_after_a_crash() -> None:
    """Its row is older than the row of what it maps over."""
    core = new_core((ONE, 1))
    mapped = {"map": {"input": "list"}}
    first = {"map": {"input": "list"}, "parameters": {"list": "[1,2]"}}
    plan = plan_of(first, mapped, edges=((0, 1, "list"),))
    run, written = _started(core, plan)
    written += core.pause_node(run.id, 1)
    written += answer(core, run, 2)
    written += answer(core, run, 3)
    written += core.resume_node(run.id, 1)
    assert [2, 2] == [run.groups[1].count, _restored(run, written).groups[1].count]


def test_a_word_that_nobody_took_yet_is_no_change_of_its_run() -> None:
    """No row could say a revision that it had: after a crash it would be given out again."""
    core = new_core()
    run = start(core, plan_of({"kind": "signal", "signal": {"name": "word"}, "parameters": {}}, {}))
    before = run.revision
    core.signal(run.id, "other", Signal(UUID(int=1), TENANT, (b"1",)))
    assert before == run.revision


def test_what_a_map_tolerates_is_put_aside_also_once_its_run_has_failed() -> None:
    core = new_core((ONE, 2))
    rule = {"input": "list", "max_failed": 1}
    run = start(core, plan_of({"map": rule, "parameters": {"list": "[1]"}}, {}))
    core.detached(ONE)
    answer(core, run, 1, Failure(error_type="user_error", message="no", retryable=False))
    core.lost(ONE)
    element = run.records[2]
    assert element is not None
    assert NodeStatus.QUARANTINED == element.status


def test_a_run_that_was_paused_before_its_time_still_waits_for_it_after_a_crash() -> None:
    core = new_core()
    plan = plan_of({})
    run = start(core, plan)
    row = dict.fromkeys(_RUN_COLUMNS) | {
        "id": run.id,
        "tenant_id": TENANT,
        "created_by": TENANT,
        "status": "paused",
        "revision": 2,
        "labels": {},
        "priority": 0,
        "starts_s": 5.0,
        "clock": datetime.now(UTC),
    }
    found = recovery._to_open_run(row, [], plan, [], {})  # type: ignore[arg-type]
    assert [5.0] == list(found.due_s.values())


def test_what_a_node_consumed_that_is_ended_by_hand_is_read_from_its_row() -> None:
    core = new_core((ONE, 1))
    run = start(core, plan_of({"retry": {"max_retries": 1}}, {}))
    record = run.records[0]
    assert record is not None
    fault = Failure(error_type="user_error", message="no")
    core.outcomes(ONE, [Outcome(record.id, record.token, fault, Usage(cpu_us=3))], now=0.0)
    [done] = [each for t in core.skip_node(run.id, 0, (b"1",)) for each in t.completes]
    assert 3 == done.cpu_us


def test_who_waits_for_a_word_has_its_turn_by_its_row_also_after_a_crash() -> None:
    """A node that was held up before it began to wait has had its row since then."""
    core = new_core((ONE, 1))
    word = {"kind": "signal", "signal": {"name": "word"}, "parameters": {}}
    other = {"kind": "approval", "approval": {"name": "word"}, "parameters": {}}
    edges = ((0, 1, ""), (0, 2, ""))
    run, written = _started(core, plan_of({}, word, word, other, edges=edges))
    written += core.pause_node(run.id, 1)
    written += answer(core, run, 0)
    written += core.resume_node(run.id, 1)
    waiting = {(Kind.SIGNAL, "word"): [1, 2], (Kind.APPROVAL, "word"): [3]}
    assert [waiting] * 2 == [run.waiting, _restored(run, written).waiting]


def test_what_begins_with_a_word_counts_its_time_from_then() -> None:
    """Most events do not say what time it is, and nothing else may have happened for hours."""
    now_s = 100.0
    core = StrictCore(
        epoch=1, new_id=lambda: UUID(int=next(_IDS)), draw=lambda: 0.5, clock=lambda: now_s
    )
    word = {"kind": "signal", "signal": {"name": "word"}, "parameters": {}}
    sleep = {"kind": "sleep", "parameters": {"seconds": "10"}}
    run = start(core, plan_of(word, sleep, edges=((0, 1, ""),)))
    now_s = 3600.0
    core.signal(run.id, "word", Signal(UUID(int=1), TENANT, (b"1",)))
    assert 3610.0 == core.next_timer


def test_a_sub_workflow_whose_start_used_up_the_budget_begins_nothing() -> None:
    """It was begun by the attempt that was the last one, and began its own nodes all the same."""
    core = new_core((ONE, 3))
    inner = plan_of({})
    plan = plan_of({}, {"kind": "workflow", "parameters": {}}, edges=((0, 1, ""),), inner=inner)
    run = start(core, plan, budget=Budget(Amounts(nodes=1)))
    answer(core, run, 0)
    assert RunStatus.FAILED == run.status
    assert [run.failure and run.failure[1].error_type] == ["budget_exceeded"]
    assert not any(each.in_flight for each in core.runners.values())


def test_a_sub_workflow_that_begins_as_its_run_is_over_time_is_stopped_by_another_statement() -> (
    None
):
    """One statement does not change a row that it inserts: the run ended as the engine's fault."""
    core = new_core()
    sleep = {"kind": "sleep", "parameters": {"seconds": "1"}}
    child = {"kind": "workflow", "parameters": {}}
    start(core, plan_of(sleep, child, edges=((0, 1, ""),), inner=plan_of({})), timeout_ms=1001)
    begun = core.due(now=2.0)
    assert [t for t in begun if t.run_inserts]
    assert not [t for t in begun if t.run_inserts and t.run_changes]


def test_an_element_that_is_declined_while_its_run_ends_is_over_for_its_map_too() -> None:
    core = new_core((ONE, 3))
    mapped = {"map": {"input": "list"}, "parameters": {"list": "[1,2]"}}
    run, written = _started(core, plan_of(mapped, {}))
    core.ledger.budgets[run.id] = Budget(Amounts(nodes=1))
    written += answer(core, run, 2)
    element = run.records[3]
    assert element is not None
    written += core.declined(ONE, element.id, element.token)
    assert [0, 0] == [run.groups[0].open, _restored(run, written).groups[0].open]


async def test_a_run_and_its_sub_workflows_are_refused_as_one() -> None:
    """A sub-workflow that was written without the node that runs it would run on its own."""
    parent, child, other = (UUID(int=at) for at in (1, 2, 3))
    refused: list[UUID] = []
    let_out: list[UUID] = []

    async def culprit(run_id: UUID, _: str) -> None:
        refused.append(run_id)

    journal = Journal(
        None,  # type: ignore[arg-type]
        ensure_live=None,  # type: ignore[arg-type]
        release=lambda committed: let_out.extend(t.run_id for t in committed.batch),
        culprit=culprit,
        family=lambda run_id: parent if run_id == child else run_id,
    )

    async def write(batch: list[Transition]) -> None:
        if parent in {t.run_id for t in batch}:
            await journal._take_apart(batch, asyncpg.PostgresError("refused"))
        else:
            let_out.extend(t.run_id for t in batch)

    journal._write = write  # type: ignore[method-assign]
    journal.submit(Transition(child))
    await write([Transition(parent), Transition(child), Transition(other)])
    assert ([parent], [other]) == (refused, let_out)
    assert journal.idle


@pytest.mark.parametrize(
    ("raised", "status"), [("ValueError", NodeStatus.RETRYING), ("KeyError", NodeStatus.FAILED)]
)
def test_a_sub_workflow_is_tried_again_after_what_it_raised_as_memory_and_its_row_tell(
    raised: str, status: NodeStatus
) -> None:
    retry = {"max_retries": 1, "initial_delay_ms": 1000, "retryable": ["ValueError"]}
    outer = plan_of({"kind": "workflow", "parameters": {}, "retry": retry}, inner=plan_of({}))
    fault = Failure(error_type="user_error", message="no", detail=detail_of_class(raised))
    row = dict.fromkeys(EndedChild._fields) | {
        "status": "failed",
        "error_type": fault.error_type,
        "exception_type": raised,
        **dict.fromkeys(USED, 3),
    }
    seen = []
    for told_by_row in (False, True):
        core = new_core((ONE, 1))
        run = start(core, outer)
        record = run.records[0]
        assert record is not None
        child = core.runs[record.child or run.id]
        if told_by_row:
            ended = recovery._to_child(row | {"id": child.id})  # type: ignore[arg-type]
            child = children.ended_run(run, 0, ended)
            planner.child_over(run, 0, Transition(run.id), core.fx, child)
        else:
            answer(core, child, 0, fault)
        seen.append(record.status)
    assert [status] * 2 == seen


def test_what_a_sub_workflow_used_is_counted_where_only_its_row_tells_of_its_end() -> None:
    """Its orchestrator was killed between the end of the child and the change of its parent."""
    core = new_core((ONE, 1))
    run = start(core, plan_of({"kind": "workflow", "parameters": {}}, inner=plan_of({})))
    record = run.records[0]
    assert record is not None
    assert record.child is not None
    row = dict.fromkeys(EndedChild._fields) | {"status": "completed", "output_data": "{}"}
    row |= {"id": record.child, **dict(zip(USED, (7, 5, 4, 2), strict=True))}
    child = children.ended_run(run, 0, recovery._to_child(row))  # type: ignore[arg-type]
    t = Transition(run.id)
    planner.child_over(run, 0, t, core.fx, child)
    [of_node], [of_run] = t.completes, t.run_changes
    for told in (of_node, of_run):
        assert (7, 5, 4, 2) == tuple(getattr(told, name) for name in USED)


def test_a_sub_workflow_that_is_held_up_before_its_next_attempt_keeps_its_last_one() -> None:
    """World 139: its row kept that, memory did not."""
    core = new_core((ONE, 1))
    outer = plan_of(
        {"kind": "workflow", "parameters": {}, "retry": {"max_retries": 1}}, inner=plan_of({})
    )
    run, written = _started(core, outer)
    record = run.records[0]
    assert record is not None
    child = core.runs[record.child or run.id]
    written += answer(core, child, 0, Failure(error_type="user_error", message="no"))
    written += core.pause_node(run.id, 0)
    kept = _restored(run, written).records[0]
    assert kept is not None
    assert [child.id] * 2 == [record.child, kept.child]


def test_a_run_that_has_its_place_asks_for_none_when_its_time_comes_once_more() -> None:
    """World 1099: the clock was set back, and with one place it would have waited for itself."""
    core = new_core((ONE, 1))
    plan = replace(plan_of({}), workflow_id=UUID(int=77))
    limit = Limit(
        id=UUID(int=78), tenant_id=TENANT, name="runs", revision=1, workflow_id=UUID(int=77)
    )
    core.limits_known([limit], now=0.0)
    run = start(new_core(), plan)
    run.records = [None]
    core.held[run.id] = Claim((Demand(limit.id, ""),), (UUID(int=79),))
    core.adopt(run, now=0.0, due_s={BEGIN: 5.0}, deadline_s=None)
    assert [] == core.redispatch()
    core.due(now=5.0)
    assert not core.limited.size
    record = run.records[0]
    assert record is not None
    assert NodeStatus.RUNNING is record.status


def test_a_place_goes_back_of_a_run_that_was_over_as_it_got_it_and_cannot_be_written() -> None:
    """World 702199: neither memory nor rows knew that a place was taken for it."""
    core = new_core((ONE, 1))
    plan = plan_of({}, {"condition": "x == null"}, edges=((0, 1, ""),))
    limit = Limit(
        id=UUID(int=78), tenant_id=TENANT, name="runs", revision=1, workflow_id=plan.workflow_id
    )
    core.limits_known([limit], now=0.0)
    for written in (False, True):
        run = start(core, plan)
        core.skip_node(run.id, 0, (b"1",))
        [claim] = core.limited.ask(1, lambda: UUID(int=next(_IDS)))
        [t] = core.slots_taken([claim], now=1.0)
        assert (
            claim.slots == tuple(each.id for each in t.uses) == tuple(each.id for each in t.frees)
        )
        if written:
            core.freed(t)
        core.forget(run.id)
        assert ([] if written else [*claim.slots]) == core.limited.abandoned
        core.limited.abandoned.clear()


def test_what_had_failed_before_its_environment_could_not_be_made_says_that_it_cannot() -> None:
    """World 705358: its run said so, and its row named the class that its last attempt raised."""
    core = new_core((ONE, 1))
    run = start(core, plan_of({"retry": {"max_retries": 1, "initial_delay_ms": 1}}))
    raised = Failure(error_type="user_error", message="no", detail=detail_of_class("Refused"))
    answer(core, run, 0, raised)
    core.unlocked.clear()
    core.due(now=9.0)
    failure = Failure(error_type="dependency_error", message="no such package")
    [t] = core.lock_known(run.place(0).node_version_id, failure)
    [last] = t.changes.values()
    assert (NodeStatus.FAILED, "dependency_error", None) == (
        last.status,
        last.error_type,
        last.error_detail,
    )


def test_a_run_that_came_to_its_end_as_it_was_read_again_is_not_broken_off() -> None:
    """World 717629: its rows were refused twice, and the third time its end stood in them."""
    core = new_core((ONE, 1))
    run = start(core, plan_of({}))
    answer(core, run, 0)
    assert RunStatus.COMPLETED is run.status
    assert [] == core.break_off(run.id, Failure(error_type="engine_error", message="no"))


# --- helpers ------------------------------------------------------------------------------------

_RUN_COLUMNS = (
    "input_data",
    "request_id",
    "created_at",
    "started_at",
    "cancel_requested_at",
    "deadline_at",
    "error_type",
    "failed_node_id",
    "exception_type",
    "budget",
    "shard",
    "business_key",
    "start_at",
    "parent_execution_id",
    "relation",
    "node_version_id",
    "ignores_cache",
    "traceparent",
    "deadline_s",
)


def _started(core: Core, plan: Plan) -> tuple[Run, list[Transition]]:
    """Start a run, and keep what that wrote."""
    kept: list[Transition] = []
    original = core.start

    def keeping(*given: Any, **named: Any) -> list[Transition]:
        kept.extend(original(*given, **named))
        return kept

    core.start = keeping  # type: ignore[method-assign]
    run = start(core, plan)
    core.start = original  # type: ignore[method-assign]
    return run, kept


def _restored(run: Run, written: list[Transition]) -> Run:
    """Read a run from what was written of it."""
    return _stored(written).restore(run.id, run.plan)


def _stored(written: list[Transition]) -> Store:
    store = Store()
    for t in written:
        store.apply(t)
    return store
