"""What a start would do, asked before anything runs, over a real engine."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import execution_service_pb2 as start_pb
from qflow.orchestrator.v1 import plan_service_pb2 as pb
from qflow.orchestrator.v1.plan_service_pb2_grpc import PlanServiceStub

from services.kit.ids import uuid7
from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import chain, ended, refusal, start
from tests.support.cost import counted


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take workflows with constructs as they are: who stores them holds them to their types."""
    from services.orchestrator.domain import compatibility

    monkeypatch.setattr(compatibility, "check", lambda *_: None)


async def plan(
    orchestra: Orchestra,
    workflow_id: object,
    input_json: str = '{"x":1}',
    *,
    token: str = "",
    **more: Any,
) -> pb.PlanExecutionResponse:
    stub: Any = PlanServiceStub(orchestra.channel(token or orchestra.owner.token))
    asked = start_pb.StartExecutionRequest(
        workflow_id=str(workflow_id), input_json=input_json, **more
    )
    answer: pb.PlanExecutionResponse = await stub.PlanExecution(
        pb.PlanExecutionRequest(start=asked)
    )
    return answer


def causes(planned: pb.PlanExecutionResponse) -> dict[str, pb.PlanWarning]:
    name = pb.PlanWarningCause.Name
    return {name(each.cause).removeprefix("PLAN_WARNING_CAUSE_"): each for each in planned.warnings}


def ran(
    orchestra: Orchestra,
    workflow_id: object,
    nodes: dict[str, tuple[uuid.UUID, list[float]]],
    *,
    owner: factories.User | None = None,
    status: str = "completed",
) -> None:
    """Write runs that are over: of each place its version and what it took in each, in seconds."""
    orchestra.forges = True
    owner = owner or orchestra.owner
    for turn in range(max(len(times) for _, times in nodes.values())):
        run = uuid7()
        took = sum(times[turn] for _, times in nodes.values())
        orchestra.sql.execute(
            "INSERT INTO workflow_executions (id, workflow_id, workflow_version, tenant_id,"
            " created_by, shard, status, created_at, started_at, completed_at)"
            " VALUES (%s, %s, 1, %s, %s, 0, %s, now(), now(), now() + %s)",
            (run, str(workflow_id), owner.id, owner.id, status, timedelta(seconds=took)),
        )
        for order, (place, (version, times)) in enumerate(nodes.items(), 1):
            orchestra.sql.execute(
                "INSERT INTO node_executions (id, workflow_execution_id, node_id,"
                " definition_node_id, node_type, node_version_id, status, execution_order,"
                " max_retries, runner_incarnation, started_at, completed_at)"
                " VALUES (%s, %s, %s, %s, 'python', %s, %s, %s, 0, %s, now(), now() + %s)",
                (uuid7(), run, place, place, version, status, order, uuid7(),
                 timedelta(seconds=times[turn])),
            )  # fmt: skip


def seconds(span: Duration) -> float:
    return span.ToTimedelta().total_seconds()


def written(orchestra: Orchestra) -> list[tuple[object, ...]]:
    return orchestra.rows(
        "SELECT (SELECT count(*) FROM workflow_executions), (SELECT count(*) FROM execution_pins),"
        "       (SELECT count(*) FROM node_executions)"
    )


@pytest.mark.usefixtures("unchecked")
async def test_a_plan_shows_what_would_run_and_writes_nothing(orchestra: Orchestra) -> None:
    """Versions, environments, Pythons; the sub-workflow is pinned without a row either."""
    ready = factories.node(orchestra.sql, orchestra.owner)
    pending = factories.node(orchestra.sql, orchestra.owner, lock="pending")
    inner = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"i": ready, "s": {"kind": "sleep", "sleep": {}, "parameters": {"seconds": "2"}}},
        edges=[("", "x", "i", "x")],
        outputs=[("out", "i")],
    )
    sub = {"kind": "workflow", "node_id": str(inner), "version": 0}
    outer = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": ready, "b": pending, "w": sub},
        edges=[("", "x", "a", "x"), ("", "x", "b", "x"), ("a", "result", "w", "x")],
        outputs=[("out", "a")],
    )
    async with orchestra.running():
        before = written(orchestra)
        planned = await plan(orchestra, outer)
        assert before == written(orchestra)
        async with (await orchestra.runner(lambda *_: None, slots=3)).attached():
            attached = await plan(orchestra, outer)
    assert not planned.execution.id
    assert [str(outer), str(inner)] == [each.workflow_id for each in planned.workflows]
    assert [str(ready.id), str(pending.id)] == [each.node_id for each in planned.node_versions]
    assert [pb.PLANNED_ENVIRONMENT_NOT_NEEDED, pb.PLANNED_ENVIRONMENT_PENDING] == [
        each.environment for each in planned.node_versions
    ]
    nodes = {each.node: each for each in planned.workflows[0].nodes}
    assert (0, 1, 1) == tuple(nodes[name].index for name in "abw")
    assert pb.PLANNED_NODE_KIND_WORKFLOW == nodes["w"].kind
    assert {"NO_RUNNER", "ENVIRONMENT_PENDING"} == set(causes(planned))
    assert ["b"] == list(causes(planned)["ENVIRONMENT_PENDING"].nodes)
    assert ["a", "b", "w/i"] == list(causes(planned)["NO_RUNNER"].nodes)
    # The sleep is all that is known: two seconds, in the sub-workflow.
    assert (2.0, 3) == (seconds(planned.time.median), planned.unknown_node_count)
    [python] = attached.pythons
    assert ("3.11", 1, 3, 3) == (
        python.python_version, python.runner_count, python.slot_count, python.free_slot_count,
    )  # fmt: skip
    assert {"ENVIRONMENT_PENDING"} == set(causes(attached))


async def test_what_a_runner_takes_ahead_shortens_no_prediction(orchestra: Orchestra) -> None:
    """While attempts are short a runner grants more than it makes at once: those queue there."""
    name = factories.node(orchestra.sql, orchestra.owner)
    places = [f"n{number}" for number in range(12)]
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys(places, name),
        edges=[("", "x", each, "x") for each in places],
        outputs=[("out", places[0])],
    )
    ran(orchestra, workflow, {each: (name.version_id, [1.0]) for each in places})
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None, slots=3)
        runner.window = 96
        async with runner.attached():
            planned = await plan(orchestra, workflow)
            [python] = planned.pythons
            assert (3, 3) == (python.slot_count, python.free_slot_count)
            assert 4.0 == seconds(planned.time.median)
            await start(orchestra, workflow)
            await runner.until(lambda: len(runner.held) == len(places))
            [python] = (await plan(orchestra, workflow)).pythons
            assert (3, 0) == (python.slot_count, python.free_slot_count)


@pytest.mark.usefixtures("unchecked")
async def test_a_plan_predicts_the_longest_path_from_what_nodes_took(orchestra: Orchestra) -> None:
    """a → (b, c) → d: the slower branch counts; another tenant's runs and failed ones do not."""
    versions = {name: factories.node(orchestra.sql, orchestra.owner) for name in "abcd"}
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=versions,
        edges=[
            ("", "x", "a", "x"),
            ("a", "result", "b", "x"),
            ("a", "result", "c", "x"),
            ("b", "result", "d", "x"),
        ],
        links=[{"source": "c", "target": "d", "kind": "order"}],
        outputs=[("out", "d")],
    )
    ids = {name: each.version_id for name, each in versions.items()}
    times = {
        "a": (ids["a"], [1.0] * 9 + [11.0]),
        "b": (ids["b"], [2.0] * 10),
        "c": (ids["c"], [5.0] * 10),
        "d": (ids["d"], [1.0] * 10),
    }
    stranger = factories.user(orchestra.sql)
    async with orchestra.running():
        unknown = await plan(orchestra, workflow)
        ran(orchestra, workflow, times)
        ran(orchestra, workflow, {"a": (ids["a"], [500.0] * 20)}, owner=stranger)
        ran(orchestra, workflow, {"b": (ids["b"], [900.0] * 20)}, status="failed")
        planned = await plan(orchestra, workflow)
        short = await plan(orchestra, workflow, timeout=Duration(seconds=6))
        async with (await orchestra.runner(lambda *_: None, slots=1)).attached():
            alone = await plan(orchestra, workflow)
    assert (4, False) == (unknown.unknown_node_count, unknown.HasField("time"))
    assert ["a", "c", "d"] == list(planned.workflows[0].longest_path)
    assert (7.0, 8.0, 0) == (
        seconds(planned.time.median), seconds(planned.time.p90), planned.unknown_node_count,
    )  # fmt: skip
    assert 9.0 == seconds(planned.work) == seconds(alone.time.median)
    assert (9.0, 10) == (seconds(planned.past_runs.median), planned.past_runs.samples)
    by_node = {each.node: each for each in planned.workflows[0].nodes}
    assert (2.0, 10) == (seconds(by_node["b"].time.median), by_node["b"].time.samples)
    facts = planned.node_versions[by_node["b"].index]
    assert (30, 20) == (facts.recent_count, facts.recent_failed_count)
    assert ["b"] == list(causes(planned)["NODE_FAILS_OFTEN"].nodes)
    assert "DEADLINE_SHORT" not in causes(planned)
    assert "probably" in causes(short)["DEADLINE_SHORT"].message


async def test_a_plan_counts_on_the_slots_of_runners_that_are_attached(
    orchestra: Orchestra,
) -> None:
    """Of one that went, what it had is still known: its attempts may come back with it."""
    one = factories.node(orchestra.sql, orchestra.owner)
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys("abcd", one),
        edges=[("", "x", each, "x") for each in "abcd"],
        outputs=[("out", "a")],
    )
    async with orchestra.running():
        ran(orchestra, workflow, {each: (one.version_id, [4.0] * 5) for each in "abcd"})
        runner = await orchestra.runner(lambda *_: None, slots=2)
        async with runner.attached():
            await start(orchestra, chain(orchestra, "z"))
            await runner.until(lambda: bool(runner.held))
            attached = await plan(orchestra, workflow)
        # The end of the stream is noticed a moment after the client's side of it.
        while (gone := await plan(orchestra, workflow)).pythons[0].runner_count:
            assert "NO_RUNNER" not in causes(gone)
    [python] = attached.pythons
    assert (1, 2, 1) == (python.runner_count, python.slot_count, python.free_slot_count)
    assert [8.0, 4.0] == [seconds(each.time.median) for each in (attached, gone)]
    assert {"NO_RUNNER"} == set(causes(gone))


@pytest.mark.usefixtures("unchecked")
async def test_a_plan_learns_from_runs_that_were(orchestra: Orchestra) -> None:
    """Times of a map as a whole, of its elements, of a node that failed: as the engine writes."""

    def answer(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if inputs["x"] < 0:
            raise Fail(retryable=False)
        return inputs["x"] + 1

    node = factories.node(orchestra.sql, orchestra.owner)
    rule = {"input": "x", "depth": 1, "max_failed": 2}
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"m": node, "z": node},
        edges=[("", "x", "z", "x")],
        node_settings={"m": {"map": rule, "parameters": {"x": "[1,-2,3]"}}},
        outputs=[("out", "z")],
    )
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            await ended(orchestra, (await start(orchestra, workflow)).id)
            planned = await plan(orchestra, workflow)
    [version] = planned.node_versions
    assert (4, 1, 3) == (
        version.recent_count, version.recent_failed_count, version.attempt.samples,
    )  # fmt: skip
    by_node = {each.node: each for each in planned.workflows[0].nodes}
    assert (1, 3) == (by_node["m"].time.samples, by_node["z"].time.samples)
    assert seconds(by_node["m"].time.median) >= seconds(version.attempt.median)


@pytest.mark.parametrize(
    ("lock", "row", "environment"),
    [
        ("failed", None, pb.PLANNED_ENVIRONMENT_FAILED),
        ("locked", None, pb.PLANNED_ENVIRONMENT_TO_BUILD),
        ("locked", "building", pb.PLANNED_ENVIRONMENT_BUILDING),
        ("locked", "ready", pb.PLANNED_ENVIRONMENT_READY),
        ("locked", "failed", pb.PLANNED_ENVIRONMENT_FAILED),
    ],
)
async def test_a_plan_says_which_environments_are_to_be_built(
    orchestra: Orchestra, lock: str, row: str | None, environment: int
) -> None:
    node = factories.node(orchestra.sql, orchestra.owner, lock="pending")
    await orchestra.change(
        "UPDATE node_version_locks SET state = %s, error = %s,"
        " lock = CASE WHEN %s = 'locked' THEN 'x==1' END,"
        " lock_digest = CASE WHEN %s = 'locked' THEN 'd' END WHERE node_version_id = %s",
        *(lock, "no such package" if lock == "failed" else None, lock, lock, node.version_id),
    )
    if row is not None:
        stranger = factories.user(orchestra.sql)
        for owner, state in ((orchestra.owner, row), (stranger, "ready")):
            orchestra.sql.execute(
                "INSERT INTO environments (key, tenant_id, python_version, platform, lock_digest,"
                " state, error) VALUES (%s, %s, '3.11', 'linux', 'd', %s, 'no such package')",
                (str(uuid7()), owner.id, state),
            )
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
    )
    async with orchestra.running():
        planned = await plan(orchestra, workflow)
    [version] = planned.node_versions
    assert environment == version.environment
    failed = environment == pb.PLANNED_ENVIRONMENT_FAILED
    assert ("no such package" if failed else "") == version.environment_error
    assert failed == ("ENVIRONMENT_FAILED" in causes(planned))


async def test_a_plan_is_refused_as_the_start_would_be(orchestra: Orchestra) -> None:
    """Inputs that do not fit, a Python that no runner has, a workflow of somebody else."""
    workflow = chain(orchestra, "a")
    newer = factories.node(orchestra.sql, orchestra.owner, python="3.14")
    other = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": newer},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
    )
    stranger = factories.user(orchestra.sql)
    async with orchestra.running():
        code, _, _ = await refusal(plan(orchestra, workflow, '{"x":"no"}'))
        assert "INVALID_ARGUMENT" == code
        code, reason, _ = await refusal(plan(orchestra, workflow, token=stranger.token))
        assert ("NOT_FOUND", "WORKFLOW_NOT_FOUND") == (code, reason)
        assert {"NO_RUNNER"} == set(causes(await plan(orchestra, other)))
        async with (await orchestra.runner(lambda *_: None)).attached():
            code, reason, _ = await refusal(plan(orchestra, other))
            assert ("FAILED_PRECONDITION", "PYTHON_MISSING") == (code, reason)


async def test_a_plan_of_ten_thousand_nodes_takes_seconds(
    orchestra: Orchestra,
) -> None:
    """With the history of five such runs, the caller's part counted too; and within one message.

    Two seconds are usual; the bound is what no machine needs that does each node's work once.
    """
    node = factories.node(orchestra.sql, orchestra.owner)
    names = [f"n{at}" for at in range(10_000)]
    edges = [("", "x", names[0], "x")]
    edges += [(names[at // 3], "result", name, "x") for at, name in enumerate(names) if at]
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys(names, node),
        edges=edges,
        outputs=[("out", names[-1])],
    )
    orchestra.forges = True
    for _ in range(5):
        run = uuid7()
        orchestra.sql.execute(
            "INSERT INTO workflow_executions (id, workflow_id, workflow_version, tenant_id,"
            " created_by, shard, status, started_at, completed_at)"
            " VALUES (%s, %s, 1, %s, %s, 0, 'completed', now(), now())",
            (run, workflow, orchestra.owner.id, orchestra.owner.id),
        )
        orchestra.sql.execute(
            "INSERT INTO node_executions (workflow_execution_id, node_id, definition_node_id,"
            " node_type, node_version_id, status, execution_order, runner_incarnation,"
            " started_at, completed_at)"
            " SELECT %s, 'n' || n, 'n' || n, 'python', %s, 'completed', n, gen_random_uuid(),"
            "        now(), now() + interval '1 s' FROM generate_series(0, 9999) AS n",
            (run, node.version_id),
        )
    async with orchestra.running():
        await plan(orchestra, workflow)  # the definition is read once
        with counted() as cost:
            planned = await plan(orchestra, workflow)
    assert 10_000 == len(planned.workflows[0].nodes)
    assert not planned.truncated
    assert 50 == planned.node_versions[0].attempt.samples
    assert 10 == len(planned.workflows[0].longest_path)
    assert cost.ms < 10_000
