"""Reruns of runs whose results were undone: what was undone is done again, and undone once."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from qflow.orchestrator.v1 import rerun_service_pb2

from services.orchestrator.domain import compatibility, partly
from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    COMPLETED,
    FAILED,
    ended,
    refusal,
    reruns,
    start,
)
from tests.integration.orchestrator.test_constructs import nodes_of
from tests.integration.orchestrator.test_reruns import Worker, fork, hold_invariants, node, rerun


@pytest.fixture
def order(orchestra: Orchestra) -> str:
    """quote → pay → ship, and refund, which undoes pay."""
    one = factories.node(orchestra.sql, orchestra.owner)
    made = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys(("quote", "pay", "ship", "refund"), one),
        edges=[
            ("", "x", "quote", "x"),
            ("quote", "result", "pay", "x"),
            ("pay", "result", "ship", "x"),
            ("pay", "result", "refund", "x"),
        ],
        node_settings={"refund": {"compensates": "pay"}},
        outputs=[("out", "ship")],
    )
    return str(made)


async def test_what_was_compensated_is_done_again(orchestra: Orchestra, order: str) -> None:
    """From the node that failed, from nothing named, and for many at once."""
    worker = Worker("ship")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            stub = reruns(orchestra)
            first = await ended(orchestra, (await start(orchestra, order)).id)
            assert {"quote": 1, "pay": 1, "ship": 1, "refund": 1} == worker.ran
            dry = await stub.RerunExecution(rerun(first.id, node("ship"), validate_only=True))
            again = await stub.RerunExecution(rerun(first.id))
            assert FAILED == (await ended(orchestra, again.execution.id)).status
            # It paid again before it gave back again.
            assert {"quote": 1, "pay": 2, "ship": 2, "refund": 2} == worker.ran
            worker.failing.clear()
            named = await stub.RerunExecution(rerun(first.id, node("ship", node_version=1)))
            assert COMPLETED == (await ended(orchestra, named.execution.id)).status
            many = await stub.BatchRerunExecutions(
                rerun_service_pb2.BatchRerunExecutionsRequest(execution_ids=[first.id])
            )
            done = await ended(orchestra, many.items[0].new_execution_id)
    assert (COMPLETED, '{"out":4}') == (done.status, done.output_json)
    assert {"quote": 1, "pay": 4, "ship": 4, "refund": 2} == worker.ran
    assert [1, 1, 1] == [each.kept_results for each in (dry, again, named)]
    hold_invariants(orchestra)


async def test_a_fork_of_an_open_run_undoes_what_it_did_itself(
    orchestra: Orchestra, order: str
) -> None:
    """Either may fail: a payment that both had would be given back twice, or taken from one."""
    worker = Worker()

    def answer(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        done = worker(define, assign, inputs)
        return None if define.node_id == "ship" else done

    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            first = await start(orchestra, order)
            await runner.until(lambda: len(runner.held) == 1)
            made = await reruns(orchestra).ForkExecution(fork(first.id))
            await runner.until(lambda: len(runner.held) == 2)
            for each in list(runner.held.values()):
                runner.fail(each, "user_error", retryable=False)
            both = [await ended(orchestra, each) for each in (first.id, made.execution.id)]
    assert [FAILED, FAILED] == [each.status for each in both]
    assert 1 == made.kept_results
    assert {"quote": 1, "pay": 2, "ship": 2, "refund": 2} == worker.ran
    hold_invariants(orchestra)


async def test_what_a_completed_run_did_is_undone_by_no_other(
    orchestra: Orchestra, order: str
) -> None:
    """Neither by a rerun of it that fails, nor by the next, nor by one of those; over a restart."""
    worker = Worker()
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            stub = reruns(orchestra)
            first = await ended(orchestra, (await start(orchestra, order)).id)
            assert COMPLETED == first.status
            worker.failing.add("ship")
            asked = [first.id, first.id]
            for _ in range(2):
                made = await stub.RerunExecution(rerun(asked[-1], node("ship")))
                failed = await ended(orchestra, made.execution.id)
                assert FAILED == failed.status
                asked.append(failed.id)
            assert {"quote": 1, "pay": 1, "ship": 3} == worker.ran
            nodes = await nodes_of(orchestra, failed.id)
            assert {"quote": "COMPLETED", "pay": "COMPLETED"} == {
                name: nodes[name] for name in ("quote", "pay")
            }
            assert ("FAILED", "SKIPPED") == (nodes["ship"], nodes["refund"])
    async with orchestra.running():  # nobody runs it yet
        held = await reruns(orchestra).RerunExecution(rerun(first.id, node("ship")))
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            assert FAILED == (await ended(orchestra, held.execution.id)).status
            assert {"quote": 1, "pay": 1, "ship": 4} == worker.ran
            # What such a run does itself it undoes itself.
            own = await reruns(orchestra).RerunExecution(rerun(first.id, node("pay")))
            assert FAILED == (await ended(orchestra, own.execution.id)).status
    assert {"quote": 1, "pay": 2, "ship": 5, "refund": 1} == worker.ran
    hold_invariants(orchestra)


@pytest.mark.parametrize("copies_max", [1, 500])
async def test_what_a_failed_run_left_is_undone_by_one_rerun_alone(
    orchestra: Orchestra, order: str, copies_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first that takes it over; others made of the same run pay and give back themselves."""
    monkeypatch.setattr(partly, "COPIES_MAX", copies_max)  # one that begins in parts is refused too
    worker = Worker("ship", "refund")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await ended(orchestra, (await start(orchestra, order)).id)
            assert {"quote": 1, "pay": 1, "ship": 1, "refund": 1} == worker.ran
    worker.failing.discard("refund")
    async with orchestra.running():  # both begin at once, before anything runs
        stub = reruns(orchestra)
        made = await asyncio.gather(*(stub.RerunExecution(rerun(first.id)) for _ in range(2)))
        assert [1, 2] == sorted(each.kept_results for each in made)
        held = await stub.ForkExecution(fork(first.id))
        async with (await orchestra.runner(worker)).attached():
            for execution in (*(each.execution for each in made), held.execution):
                assert FAILED == (await ended(orchestra, execution.id)).status
    # It was paid once by each, and each payment was given back once.
    assert {"quote": 1, "pay": 3, "ship": 4, "refund": 4} == worker.ran
    hold_invariants(orchestra)


async def test_what_a_rerun_that_completed_took_over_is_its_own(
    orchestra: Orchestra, order: str
) -> None:
    """Another one of the same run keeps it too, and does not take it from that."""
    worker = Worker("ship", "refund")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            stub = reruns(orchestra)
            first = await ended(orchestra, (await start(orchestra, order)).id)
            worker.failing.clear()
            heir = await stub.RerunExecution(rerun(first.id))
            assert COMPLETED == (await ended(orchestra, heir.execution.id)).status
            worker.failing.add("ship")
            later = await stub.RerunExecution(rerun(first.id))
            assert FAILED == (await ended(orchestra, later.execution.id)).status
    assert [2, 2] == [each.kept_results for each in (heir, later)]
    assert {"quote": 1, "pay": 1, "ship": 3, "refund": 1} == worker.ran
    hold_invariants(orchestra)


async def test_a_map_that_another_run_goes_on_with_is_not_gone_on_with(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would undo its elements: the one that was made of it first is to be made use of."""
    monkeypatch.setattr(compatibility, "check", lambda *_: None)
    one = factories.node(orchestra.sql, orchestra.owner)
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"pay": one, "refund": one},
        edges=[("", "x", "refund", "x")],
        node_settings={
            "pay": {"map": {"input": "x", "max_failed": 1}, "parameters": {"x": "[1,-1]"}},
            "refund": {"compensates": "pay"},
        },
        outputs=[("out", "pay")],
    )

    def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        if inputs["x"] < 0:
            raise Fail(retryable=False)
        return 1

    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            stub = reruns(orchestra)
            first = await ended(orchestra, (await start(orchestra, workflow)).id)
            assert COMPLETED == first.status
            asked = rerun_service_pb2.RetryQuarantinedRequest(execution_id=first.id)
            made = await stub.RetryQuarantined(asked)
            assert COMPLETED == (await ended(orchestra, made.execution.id)).status
            told = await refusal(stub.RetryQuarantined(asked))
            assert ("FAILED_PRECONDITION", "TAKEN_OVER") == told[:2]
            next_one = rerun_service_pb2.RetryQuarantinedRequest(execution_id=made.execution.id)
            again = (await stub.RetryQuarantined(next_one)).execution
            assert COMPLETED == (await ended(orchestra, again.id)).status
            whole = await stub.RerunExecution(rerun(first.id, node("pay")))
            assert COMPLETED == (await ended(orchestra, whole.execution.id)).status
    hold_invariants(orchestra)


async def test_kept_results_are_undone_in_the_order_in_which_they_were_made(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was completed last comes first, however they are declared, in a rerun of a rerun too.

    They failed to be undone before: what a run leaves that failed is up to who takes it over.
    """
    monkeypatch.setattr(compatibility, "check", lambda *_: None)
    one = factories.node(orchestra.sql, orchestra.owner)
    places = ("third", "first", "second", "last")
    undoes = ("un_second", "un_first", "un_third")
    order = ("first", "second", "third", "last")
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys((*places, *undoes), one),
        edges=[("", "x", name, "x") for name in ("first", "third", "last", *undoes)],
        links=[{"source": a, "target": b, "kind": "order"} for a, b in pairwise(order)],
        node_settings={
            # No row holds its list: it is taken over as its elements.
            "second": {"map": {"input": "x"}, "parameters": {"x": "[1,2]"}},
            **{name: {"compensates": name.removeprefix("un_")} for name in undoes},
        },
        outputs=[("out", "last")],
    )
    worker = Worker("last", *undoes)

    def answer(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        done = worker(define, assign, inputs)
        return "e" * 40_000 if define.node_id == "second" else done

    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            stub = reruns(orchestra)
            first = await ended(orchestra, (await start(orchestra, workflow)).id)
            again = await stub.RerunExecution(rerun(first.id, node("last")))
            await ended(orchestra, again.execution.id)
            worker.failing.difference_update(undoes)
            asked = rerun(again.execution.id, node("last"))
            done = await ended(orchestra, (await stub.RerunExecution(asked)).execution.id)
    undone = orchestra.rows(
        "SELECT node_id FROM node_executions WHERE workflow_execution_id = %s"
        " AND status = 'completed' AND starts_with(node_id, 'un_') ORDER BY started_at",
        done.id,
    )
    assert FAILED == done.status
    assert [("un_third",), ("un_second",), ("un_first",)] == undone
    hold_invariants(orchestra)


async def test_what_was_done_is_undone_where_the_outputs_are_too_large(
    orchestra: Orchestra,
) -> None:
    """The run fails for them once all its nodes have completed, over a restart too."""
    one = factories.node(orchestra.sql, orchestra.owner)
    wide = [f"n{at}" for at in range(20)]
    made = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys(("pay", "refund", "last", *wide), one),
        edges=[
            ("", "x", "pay", "x"),
            ("pay", "result", "refund", "x"),
            ("", "x", "last", "x"),
            *(("pay", "result", each, "x") for each in wide),
        ],
        node_settings={"refund": {"compensates": "pay"}, "last": {"phase": "finally"}},
        outputs=[(each, each) for each in wide],
    )
    ran: list[str] = []

    def answer(define: Any, _assign: Any, _inputs: dict[str, Any]) -> object:
        ran.append(define.node_id)
        if define.node_id == "refund" and ran.count("refund") == 1:
            return None  # until its runner is gone
        return "x" * 60_000 if define.node_id in wide else 1

    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            run = await start(orchestra, made)
            await runner.until(lambda: "refund" in ran)
    async with orchestra.running():
        await orchestra.renew(runner, ttl_s=0.1)
        async with (await orchestra.runner(answer)).attached():
            done = await ended(orchestra, run.id)
    assert (FAILED, "output_too_large", "") == (
        done.status,
        done.error.error_type,
        done.output_json,
    )
    assert [1, 2, 1] == [ran.count(each) for each in ("pay", "refund", "last")]
