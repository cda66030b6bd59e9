"""Results that are given again instead of running a node: when, to whom, and when not."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import pytest
from qflow.orchestrator.v1 import execution_pb2, explain_service_pb2, plan_service_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.plan_service_pb2_grpc import PlanServiceStub
from qflow.orchestrator.v1.rerun_service_pb2 import RerunExecutionRequest, RerunNode

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import COMPLETED, ended, reruns, start
from tests.integration.orchestrator.test_explain import only
from tests.integration.orchestrator.test_large_lists import stored
from tests.integration.orchestrator.test_reruns import hold_invariants

_HOUR_MS = 3_600_000


class Worker:
    """Adds one and counts what ran; what is in `files` is a file, what is in `failing` fails."""

    def __init__(self, orchestra: Orchestra) -> None:
        self.orchestra = orchestra
        self.files: set[str] = set()
        self.failing: set[str] = set()
        self.texts: dict[str, Any] = {}
        self.ran: Counter[str] = Counter()

    def __call__(self, define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        name = define.node_id
        self.ran[name] += 1
        if name in self.failing:
            raise Fail(retryable=False)
        if name in self.files:
            return stored(self.orchestra, assign)
        if name in self.texts:
            return self.texts[name]
        return 7 if not isinstance(inputs.get("x"), int) else inputs["x"] + 1


def chain(orchestra: Orchestra, **settings: dict[str, Any]) -> str:
    """Make a workflow a → b → c of one node; by default b and c are cached for an hour."""
    one = factories.node(orchestra.sql, orchestra.owner)
    return made_of(orchestra, one, **settings)


def made_of(orchestra: Orchestra, one: factories.Node, **settings: dict[str, Any]) -> str:
    cached = {"cache_ttl_ms": _HOUR_MS}
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": one, "b": one, "c": one},
        edges=[("", "x", "a", "x"), ("a", "result", "b", "x"), ("b", "result", "c", "x")],
        outputs=[("out", "c")],
        node_settings={"b": cached, "c": cached, **settings},
    )
    return str(workflow)


async def run(orchestra: Orchestra, workflow: str, input_json: str = '{"x":1}', **more: Any) -> Any:
    started = await start(orchestra, workflow, input_json, **more)
    done = await ended(orchestra, started.id)
    assert COMPLETED == done.status
    return done


async def nodes_of(orchestra: Orchestra, execution_id: str) -> dict[str, Any]:
    listed = await orchestra.stub.ListNodeExecutions(
        pb.ListNodeExecutionsRequest(
            execution_id=execution_id, view=execution_pb2.EXECUTION_VIEW_FULL
        )
    )
    return {each.node_id: each for each in listed.node_executions}


async def kept(orchestra: Orchestra, count: int) -> None:
    """Wait until so many results are in the cache: they go there once they are committed."""
    query = "SELECT count(*) FROM cached_results WHERE created_at > now() - interval '1 minute'"
    while orchestra.rows(query) != [(count,)]:
        await orchestra.stub.ListExecutions(pb.ListExecutionsRequest())


async def test_a_result_is_given_again_until_its_time_is_up(orchestra: Orchestra) -> None:
    """Two nodes with the same source share what they gave; what is not cached runs every time."""
    workflow = chain(orchestra)
    worker = Worker(orchestra)
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await run(orchestra, workflow)
            await kept(orchestra, 2)
            again = await run(orchestra, workflow)
            assert {"a": 2, "b": 1, "c": 1} == worker.ran
            nodes = await nodes_of(orchestra, again.id)
            hold_invariants(orchestra)
            await orchestra.change(
                "UPDATE cached_results SET created_at = created_at - interval '61 minutes'"
            )
            await run(orchestra, workflow)
            assert {"a": 3, "b": 2, "c": 2} == worker.ran
            await kept(orchestra, 2)
            await run(orchestra, workflow, '{"x":2}')  # b is what c was, and c is new
            await kept(orchestra, 3)
    assert first.output_json == again.output_json
    assert [False, True, True] == [nodes[each].cache_hit for each in "abc"]
    rows = orchestra.rows(
        "SELECT node_id, id::text FROM node_executions WHERE workflow_execution_id = %s", first.id
    )
    before = {str(name): row_id for name, row_id in rows}
    assert [before["b"], before["c"]] == [nodes[each].copied_from for each in "bc"]
    assert '{"result":3}' == nodes["b"].output_json
    assert {"a": 4, "b": 2, "c": 3} == worker.ran


async def test_a_run_may_ignore_the_cache_and_fills_it_nevertheless(orchestra: Orchestra) -> None:
    workflow = chain(orchestra)
    worker = Worker(orchestra)
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            await run(orchestra, workflow, ignore_cache=True)
            await kept(orchestra, 2)
            # World 94: the clock was set back since, and what is kept is newer than new.
            await orchestra.change(
                "UPDATE cached_results SET created_at = created_at + interval '1 minute'"
            )
            fresh = await run(orchestra, workflow, ignore_cache=True)
            assert dict.fromkeys("abc", 2) == worker.ran
            got = await orchestra.stub.GetExecution(pb.GetExecutionRequest(execution_id=fresh.id))
            await run(orchestra, workflow)
    assert got.execution.ignore_cache
    assert {"a": 3, "b": 2, "c": 2} == worker.ran


async def test_nothing_is_cached_that_is_not_asked_for(orchestra: Orchestra) -> None:
    workflow = chain(orchestra, b={}, c={})
    worker = Worker(orchestra)
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            for _ in range(2):
                await run(orchestra, workflow)
    assert dict.fromkeys("abc", 2) == worker.ran
    assert [] == orchestra.rows("SELECT 1 FROM cached_results")


async def test_a_failure_is_not_cached(orchestra: Orchestra) -> None:
    workflow = chain(orchestra)
    worker = Worker(orchestra)
    worker.failing.add("b")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            for _ in range(2):
                started = await start(orchestra, workflow)
                await ended(orchestra, started.id)
    assert {"a": 2, "b": 2} == worker.ran
    assert [] == orchestra.rows("SELECT 1 FROM cached_results")


async def test_a_file_is_given_again_while_it_is_there_and_the_same(orchestra: Orchestra) -> None:
    """Verified before use: by the digest that was noted; each user of the file keeps it."""
    workflow = chain(orchestra, a={"cache_ttl_ms": _HOUR_MS})
    worker = Worker(orchestra)
    worker.files.add("a")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await run(orchestra, workflow)
            await kept(orchestra, 3)
            again = await run(orchestra, workflow)
            assert dict.fromkeys("abc", 1) == worker.ran  # what reads the file is found by it
            nodes = [await nodes_of(orchestra, each.id) for each in (first, again)]
            assert nodes[0]["a"].output_file == nodes[1]["a"].output_file
            assert 1 == len(orchestra.rows("SELECT 1 FROM file_uses"))
            hold_invariants(orchestra)
            await orchestra.change("UPDATE files SET hash_sha256 = repeat('c', 64)")
            await run(orchestra, workflow)
            assert 2 == worker.ran["a"]
            await orchestra.change("DELETE FROM files")
            await run(orchestra, workflow)
    assert 3 == worker.ran["a"]


async def test_what_names_a_file_or_lacks_its_digest_is_never_cached(orchestra: Orchestra) -> None:
    """Nobody could say whether it is still the same."""
    workflow = chain(orchestra, c={})
    worker = Worker(orchestra)
    worker.texts["b"] = {"$file": str(uuid.uuid4())}
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            for _ in range(2):
                await run(orchestra, workflow)
    assert 2 == worker.ran["b"]
    assert [] == orchestra.rows("SELECT 1 FROM cached_results")


@pytest.mark.parametrize(
    "lost",
    [
        "UPDATE python_nodes SET deleted_at = now() WHERE id = %s",
        "UPDATE python_nodes SET is_public = false, tenant_id = %s, created_by = %s",
    ],
)
async def test_a_result_of_a_node_that_may_not_be_read_any_more_is_not_given(
    orchestra: Orchestra, lost: str
) -> None:
    """X14: the same source in another node does not bring it back."""
    one = factories.node(orchestra.sql, orchestra.owner)
    twin = factories.node(orchestra.sql, orchestra.owner)
    first, second = made_of(orchestra, one), made_of(orchestra, twin)
    worker = Worker(orchestra)
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            await run(orchestra, first)
            await kept(orchestra, 2)
            await run(orchestra, second)
            assert 1 == worker.ran["b"]  # the same source, packages and inputs
            if "deleted_at" in lost:
                orchestra.sql.execute(lost, (one.id,))
            else:
                other = factories.user(orchestra.sql)
                orchestra.sql.execute(lost + " WHERE id = %s", (other.id, other.id, one.id))
            await run(orchestra, second)
    assert 2 == worker.ran["b"]


async def test_a_result_of_a_run_that_is_being_removed_is_not_given(orchestra: Orchestra) -> None:
    """CP21: its row may be gone by when it is copied."""
    workflow = chain(orchestra)
    worker = Worker(orchestra)
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            await run(orchestra, workflow)
            await kept(orchestra, 2)
            await orchestra.change("UPDATE workflow_executions SET purge_started_at = now()")
            await run(orchestra, workflow)
    assert dict.fromkeys("abc", 2) == worker.ran


async def test_another_tenant_gets_nothing_of_the_cache(orchestra: Orchestra) -> None:
    """S7: a public node gives each tenant results of its own."""
    one = factories.node(orchestra.sql, orchestra.owner)
    await orchestra.change("UPDATE python_nodes SET is_public = true")
    worker = Worker(orchestra)
    other = factories.user(orchestra.sql)
    mine = made_of(orchestra, one)
    owner, orchestra.owner = orchestra.owner, other
    theirs = made_of(orchestra, one)
    orchestra.owner = owner
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            await run(orchestra, mine)
            await kept(orchestra, 2)
            from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

            orchestra.stub = ExecutionServiceStub(orchestra.channel(other.token))
            await run(orchestra, theirs)
            await kept(orchestra, 4)
    assert dict.fromkeys("abc", 2) == worker.ran


async def test_a_node_that_is_named_runs_again(orchestra: Orchestra) -> None:
    workflow = chain(orchestra)
    worker = Worker(orchestra)
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await run(orchestra, workflow)
            await kept(orchestra, 2)
            answer = await reruns(orchestra).RerunExecution(
                RerunExecutionRequest(execution_id=first.id, from_nodes=[RerunNode(node="b")])
            )
            done = await ended(orchestra, answer.execution.id)
    assert COMPLETED == done.status
    assert {"a": 1, "b": 2, "c": 2} == worker.ran


async def test_a_hit_is_in_the_rows_when_the_engine_starts_again(orchestra: Orchestra) -> None:
    """F2, I40: the run goes on from the result that was copied."""
    workflow = chain(orchestra, c={})
    worker = Worker(orchestra)
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            await run(orchestra, workflow)
            await kept(orchestra, 1)
            worker.texts["c"] = None  # it gives no answer
            runner = await orchestra.runner(worker)
            started = await start(orchestra, workflow)
            while worker.ran["c"] < 2:
                await orchestra.stub.ListExecutions(pb.ListExecutionsRequest())
            await orchestra.change("UPDATE runner_members SET state = 'fenced'")
    del worker.texts["c"]
    async with orchestra.running():
        runner = await orchestra.runner(worker)
        async with runner.attached():
            done = await ended(orchestra, started.id)
            nodes = await nodes_of(orchestra, started.id)
            hold_invariants(orchestra)
    assert ('{"out":4}', True, 1) == (done.output_json, nodes["b"].cache_hit, worker.ran["b"])


async def test_a_plan_says_what_is_in_the_cache(orchestra: Orchestra) -> None:
    workflow = chain(orchestra, a={"cache_ttl_ms": _HOUR_MS}, c={})
    worker = Worker(orchestra)

    async def planned(**more: Any) -> list[bool]:
        stub = PlanServiceStub(orchestra.channel(orchestra.owner.token))
        request = pb.StartExecutionRequest(workflow_id=workflow, **more)
        answer = await stub.PlanExecution(plan_service_pb2.PlanExecutionRequest(start=request))
        first = answer.workflows[0]
        # What is taken from the cache takes no time: it is on no path that does.
        assert not {node.node for node in first.nodes if node.cache_hit} & {*first.longest_path}
        return [node.cache_hit for node in first.nodes]

    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            assert [False, False, False] == await planned(input_json='{"x":1}')
            await run(orchestra, workflow)
            await kept(orchestra, 2)
            assert [True, True, False] == await planned(input_json='{"x":1}')
            assert [True, False, False] == await planned(input_json='{"x":2}')
            assert [False] * 3 == await planned(input_json='{"x":1}', ignore_cache=True)
            assert [False] * 3 == await planned(input_json='{"x":9}')
    assert dict.fromkeys("abc", 1) == worker.ran


async def test_a_plan_says_of_sub_workflows_what_is_in_the_cache(orchestra: Orchestra) -> None:
    """What one would answer is known where all of it is; a node is a hit where it always is."""
    one = factories.node(orchestra.sql, orchestra.owner)
    cached = {"cache_ttl_ms": _HOUR_MS}
    inner = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"i": one},
        edges=[("", "x", "i", "x")],
        outputs=[("out", "i")],
        node_settings={"i": cached},
    )
    sub = {"kind": "workflow", "node_id": str(inner), "version": 0}
    both = {
        name: factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"u": sub, "v": sub, "z": one},
            edges=[("", "x", "u", "x"), ("u", "out", "z", "x"), (*second, "v", "x")],
            outputs=[("out", "z")],
            node_settings={"z": cached},
        )
        for name, second in {"same": ("", "x"), "after": ("u", "out")}.items()
    }
    behind = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"u": sub, "n": one, "v": sub},
        edges=[("", "x", "u", "x"), ("", "x", "n", "x"), ("n", "result", "v", "x")],
        outputs=[],
    )

    async def planned(workflow: object, input_json: str) -> list[list[bool]]:
        stub = PlanServiceStub(orchestra.channel(orchestra.owner.token))
        request = pb.StartExecutionRequest(workflow_id=str(workflow), input_json=input_json)
        answer = await stub.PlanExecution(plan_service_pb2.PlanExecutionRequest(start=request))
        return [[node.cache_hit for node in each.nodes] for each in answer.workflows]

    nothing = [[False, False, False], [False]]
    async with orchestra.running():
        async with (await orchestra.runner(Worker(orchestra))).attached():
            assert nothing == await planned(both["same"], '{"x":1}')
            await run(orchestra, str(both["same"]))  # i of 1 is 2; z of 2 is 3
            await kept(orchestra, 2)
            assert [[False, False, True], [True]] == await planned(both["same"], '{"x":1}')
            assert nothing == await planned(both["same"], '{"x":5}')
            # The same node, as i of 2, is in the cache as z of 2 is; i of 3 is not.
            assert [[False, False, True], [True]] == await planned(both["after"], '{"x":1}')
            assert [[False, False, False], [False]] == await planned(both["after"], '{"x":2}')
            # i of 1 is there; what the node before the other gives is not known.
            assert nothing == await planned(behind, '{"x":1}')


async def test_a_result_is_found_by_all_that_it_was_computed_with(orchestra: Orchestra) -> None:
    """By code, Python and packages, whichever node has them; asked where no runner is attached."""
    cached = {"cache_ttl_ms": _HOUR_MS}

    def made(**different: Any) -> str:
        one = factories.node(orchestra.sql, orchestra.owner, **different)
        if different.get("lock") == "pending":
            orchestra.sql.execute(
                "UPDATE node_version_locks SET state = 'locked', lock = 'x==1', lock_digest = 'd'"
                " WHERE node_version_id = %s",
                (one.version_id,),
            )
        workflow = factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": one},
            edges=[("", "x", "a", "x")],
            outputs=[("out", "a")],
            node_settings={"a": cached},
        )
        return str(workflow)

    async with orchestra.running():
        async with (await orchestra.runner(Worker(orchestra))).attached():
            await run(orchestra, made())
            await kept(orchestra, 1)
    async with orchestra.running():
        stub = PlanServiceStub(orchestra.channel(orchestra.owner.token))
        hits = list[bool]()
        for different in (
            {},
            {"code": "def main(x: int) -> int:\n    return x + 2\n"},
            {"python": "3.14"},
            {"lock": "pending"},
        ):
            asked = pb.StartExecutionRequest(workflow_id=made(**different), input_json='{"x":1}')
            answer = await stub.PlanExecution(plan_service_pb2.PlanExecutionRequest(start=asked))
            hits.append(answer.workflows[0].nodes[0].cache_hit)
    assert [True, False, False, False] == hits


async def test_a_run_says_that_the_cache_is_asked(orchestra: Orchestra) -> None:
    """Not that it waits for a runner; and a cache that does not answer holds nothing up."""
    workflow = chain(orchestra, b={}, a={"cache_ttl_ms": _HOUR_MS})
    async with orchestra.running():
        async with (await orchestra.runner(Worker(orchestra))).attached():
            with orchestra.sql.transaction():
                await orchestra.change("LOCK TABLE cached_results IN ACCESS EXCLUSIVE MODE")
                started = await start(orchestra, workflow)
                reason = await only(orchestra, started.id)
                assert explain_service_pb2.EXECUTION_CAUSE_CACHE_ASKED == reason.cause
                assert ["a"] == list(reason.nodes)
                assert COMPLETED == (await ended(orchestra, started.id)).status


async def test_what_is_undone_is_done_by_each_run_itself_and_so_is_what_undoes_it(
    orchestra: Orchestra,
) -> None:
    """The second run took a payment that the first one had given back, and gave it back again."""
    one = factories.node(orchestra.sql, orchestra.owner)
    cached = {"cache_ttl_ms": _HOUR_MS}
    order = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys(("pay", "ship", "refund"), one),
        edges=[
            ("", "x", "pay", "x"),
            ("pay", "result", "ship", "x"),
            ("pay", "result", "refund", "x"),
        ],
        outputs=[("out", "ship")],
        node_settings={"pay": cached, "refund": {**cached, "compensates": "pay"}},
    )
    worker = Worker(orchestra)
    worker.failing.add("ship")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            for ran in (1, 2):
                await ended(orchestra, (await start(orchestra, order)).id)
                assert {"pay": ran, "ship": ran, "refund": ran} == worker.ran
                assert [(0,)] == orchestra.rows("SELECT count(*) FROM cached_results")
            worker.failing.clear()
            await run(orchestra, str(order))
    assert {"pay": 3, "ship": 3, "refund": 2} == worker.ran
