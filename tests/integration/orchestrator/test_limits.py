"""Limits: what is over them waits, goes on in order, and never more than they allow at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import attach_service_pb2 as attach
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1 import explain_service_pb2, limit_service_pb2
from qflow.orchestrator.v1.explain_service_pb2_grpc import ExplainServiceStub
from qflow.orchestrator.v1.limit_service_pb2_grpc import LimitServiceStub

from tests import factories
from tests.fakes.runner import FakeRunner
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    CANCELLED,
    COMPLETED,
    PENDING,
    cancel,
    ended,
    get,
    refusal,
    start,
)
from tests.integration.orchestrator.test_members import on_both, owners, two, until
from tests.integration.orchestrator.test_runs import add_one

if TYPE_CHECKING:
    from qflow.orchestrator.v1.limit_service_pb2_grpc import LimitServiceAsyncStub

WORKFLOW = limit_service_pb2.LIMIT_TARGET_WORKFLOW
NODE = limit_service_pb2.LIMIT_TARGET_NODE
TENANT = limit_service_pb2.LIMIT_TARGET_TENANT
LIMITED = explain_service_pb2.EXECUTION_CAUSE_LIMITED


def limits(orchestra: Orchestra, token: str = "") -> LimitServiceAsyncStub:
    return LimitServiceStub(orchestra.channel(token or orchestra.owner.token))


async def limit(orchestra: Orchestra, **said: Any) -> limit_service_pb2.Limit:
    request = limit_service_pb2.CreateLimitRequest(**{"name": "few", **said})
    return (await limits(orchestra).CreateLimit(request)).limit


@pytest.fixture
def node(orchestra: Orchestra) -> factories.Node:
    return factories.node(orchestra.sql, orchestra.owner)


@pytest.fixture
def one(orchestra: Orchestra, node: factories.Node) -> str:
    """A workflow of one node."""
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node},
            edges=[("", "x", "a", "x")],
            outputs=[("y", "a")],
        )
    )


def never(*_: object) -> None:
    """Answer nothing: the attempt goes on until the test ends it."""


def x_of(assign: attach.AttemptAssignment) -> int:
    return int(assign.inputs[0].json)


def succeed(runner: FakeRunner, assigns: Iterable[attach.AttemptAssignment]) -> None:
    for assign in list(assigns):
        runner.succeed(assign, x_of(assign) + 1)


def run_of(assign: attach.AttemptAssignment) -> str:
    return str(UUID(bytes=assign.execution_id))


def is_held(runner: FakeRunner, xs: list[int], runs: Sequence[str] = ()) -> bool:
    """Whether what the attempts read that a runner has, all or of some runs, is this."""
    held = [each for each in runner.held.values() if not runs or run_of(each) in runs]
    return xs == sorted(map(x_of, held))


@asynccontextmanager
async def crowded(
    orchestra: Orchestra, workflow: str, *, places: int, count: int
) -> AsyncIterator[tuple[FakeRunner, list[str]]]:
    """More runs of a workflow than its limit lets run, in their order: the first of them do."""
    async with orchestra.running():
        await limit(orchestra, target=WORKFLOW, workflow_id=workflow, max_running=places)
        runner = await orchestra.runner(never)
        async with runner.attached():
            runs = [(await start(orchestra, workflow, f'{{"x":{x}}}')).id for x in range(count)]
            await runner.until(lambda: is_held(runner, list(range(places))))
            yield runner, runs


async def slots(orchestra: Orchestra, count: int) -> None:
    await until(lambda: [(count,)] == orchestra.rows("SELECT count(*) FROM limit_slots"))


async def explained(orchestra: Orchestra, run: str) -> list[explain_service_pb2.ExecutionReason]:
    stub = ExplainServiceStub(orchestra.channel(orchestra.owner.token))
    request = explain_service_pb2.ExplainExecutionRequest(execution_id=run)
    return list((await stub.ExplainExecution(request)).reasons)


async def test_runs_over_the_limit_of_their_workflow_stay_pending_and_go_on_in_order(
    orchestra: Orchestra, one: str
) -> None:
    async with crowded(orchestra, one, places=2, count=4) as (runner, runs):
        assert PENDING == (await get(orchestra, runs[2])).status
        [reason] = await explained(orchestra, runs[3])
        assert LIMITED == reason.cause
        assert "few" in reason.message
        succeed(runner, runner.held.values())
        await runner.until(lambda: is_held(runner, [2, 3]))
        succeed(runner, runner.held.values())
        assert [COMPLETED] * 4 == [(await ended(orchestra, run)).status for run in runs]
        await slots(orchestra, 0)


async def test_attempts_at_a_node_wait_for_places_and_their_run_goes_on_elsewhere(
    orchestra: Orchestra, node: factories.Node, one: str, diamond: str
) -> None:
    """Of one node wherever it is used; what else there is of the runs is not held up."""
    async with orchestra.running():
        await limit(orchestra, target=NODE, node_id=str(node.id), max_running=1)
        runner = await orchestra.runner(never)
        async with runner.attached():
            runs = [(await start(orchestra, one, f'{{"x":{x}}}')).id for x in range(3)]
            await start(orchestra, diamond)
            await runner.until(lambda: len(runner.held) == 2)  # one of the limited, one of others
            [reason] = await explained(orchestra, runs[1])
            assert (LIMITED, ["a"]) == (reason.cause, list(reason.nodes))
            for at in range(3):
                await runner.until(partial(is_held, runner, [at], runs))
                succeed(runner, [each for each in runner.held.values() if run_of(each) in runs])
                assert COMPLETED == (await ended(orchestra, runs[at])).status


async def test_each_value_of_a_key_has_its_own_count(orchestra: Orchestra, one: str) -> None:
    async with orchestra.running():
        await limit(
            orchestra,
            target=WORKFLOW,
            workflow_id=one,
            max_running=1,
            key_expression="input.x % 2 == 0",
        )
        runner = await orchestra.runner(never)
        async with runner.attached():
            for x in range(6):
                await start(orchestra, one, f'{{"x":{x}}}')
            for pair in ([0, 1], [2, 3], [4, 5]):
                await runner.until(partial(is_held, runner, pair))
                succeed(runner, runner.held.values())
            await slots(orchestra, 0)


async def test_a_rate_lets_so_many_begin_and_the_next_when_its_token_is_there(
    orchestra: Orchestra, one: str
) -> None:
    async with orchestra.running():
        await limit(
            orchestra, target=TENANT, max_starts=2, period=Duration(seconds=2)
        )  # a token a second
        runner = await orchestra.runner(add_one)
        async with runner.attached():
            runs = [(await start(orchestra, one, f'{{"x":{x}}}')).id for x in range(4)]
            assert [COMPLETED] * 4 == [(await ended(orchestra, run)).status for run in runs]
    [(seconds,)] = orchestra.rows(
        "SELECT EXTRACT(epoch FROM max(started_at) - min(started_at))::float8 FROM node_executions"
    )
    assert 1.8 < float(str(seconds)) < 6


async def test_a_limit_that_is_raised_or_deleted_frees_what_waits(
    orchestra: Orchestra, one: str
) -> None:
    async with orchestra.running():
        made = await limit(orchestra, target=WORKFLOW, workflow_id=one, max_running=1)
        runner = await orchestra.runner(never)
        async with runner.attached():
            for x in range(5):
                await start(orchestra, one, f'{{"x":{x}}}')
            await runner.until(lambda: len(runner.held) == 1)
            update = limit_service_pb2.UpdateLimitRequest(name="few", max_running=3, etag=made.etag)
            changed = (await limits(orchestra).UpdateLimit(update)).limit
            await runner.until(lambda: len(runner.held) == 3)
            assert ("ABORTED", "ETAG_MISMATCH") == (
                await refusal(limits(orchestra).UpdateLimit(update))
            )[:2]
            delete = limit_service_pb2.DeleteLimitRequest(name="few", etag=changed.etag)
            await limits(orchestra).DeleteLimit(delete)
            await runner.until(lambda: len(runner.held) == 5)
            await slots(orchestra, 0)


async def test_a_limit_that_is_lowered_lets_nothing_begin_until_as_many_have_ended(
    orchestra: Orchestra, one: str
) -> None:
    async with orchestra.running():
        await limit(orchestra, target=TENANT, max_running=3)
        runner = await orchestra.runner(never)
        async with runner.attached():
            runs = [(await start(orchestra, one, f'{{"x":{x}}}')).id for x in range(5)]
            await runner.until(lambda: len(runner.held) == 3)
            update = limit_service_pb2.UpdateLimitRequest(name="few", max_running=1)
            await limits(orchestra).UpdateLimit(update)
            for left in (2, 1):
                succeed(runner, list(runner.held.values())[:1])
                await slots(orchestra, left)
                assert left == len(runner.held)
            for _ in range(3):
                await runner.until(lambda: len(runner.held) == 1)
                succeed(runner, runner.held.values())
            assert [COMPLETED] * 5 == [(await ended(orchestra, run)).status for run in runs]


async def test_a_run_that_waits_for_a_limit_is_cancelled_and_one_that_runs_makes_room(
    orchestra: Orchestra, one: str
) -> None:
    async with crowded(orchestra, one, places=1, count=3) as (runner, runs):
        assert CANCELLED == (await cancel(orchestra, runs[1])).status
        await cancel(orchestra, runs[0])
        await runner.until(lambda: is_held(runner, [2]))
        succeed(runner, runner.held.values())
        assert COMPLETED == (await ended(orchestra, runs[2])).status
        await slots(orchestra, 0)


async def test_places_and_what_waits_for_them_outlive_a_restart(
    orchestra: Orchestra, node: factories.Node, one: str
) -> None:
    """I9, I32: what was held is held, by what it was held."""
    async with orchestra.running():
        await limit(orchestra, target=WORKFLOW, workflow_id=one, max_running=2)
        await limit(orchestra, name="one", target=NODE, node_id=str(node.id), max_running=1)
        runner = await orchestra.runner(never)
        async with runner.attached():
            runs = [(await start(orchestra, one, f'{{"x":{x}}}')).id for x in range(4)]
            await runner.until(lambda: len(runner.held) == 1)
            await slots(orchestra, 3)
    async with orchestra.running():
        again = await orchestra.runner(never)
        again.incarnation, again.held = runner.incarnation, runner.held
        async with again.attached():
            for at in range(4):
                await again.until(partial(is_held, again, [at]))
                assert 3 >= len(orchestra.rows("SELECT 1 FROM limit_slots"))
                succeed(again, again.held.values())
            assert [COMPLETED] * 4 == [(await ended(orchestra, run)).status for run in runs]
        await slots(orchestra, 0)


async def test_places_of_a_member_that_is_gone_are_swept(orchestra: Orchestra, one: str) -> None:
    """I9: taken for nothing that was ever written."""
    async with orchestra.running():
        await limit(orchestra, target=WORKFLOW, workflow_id=one, max_running=1)
        orchestra.sql.execute(
            "INSERT INTO limit_slots (limit_id, key, ordinal, id, tenant_id, member_id, epoch)"
            " SELECT id, '', 1, %s, tenant_id, %s, 1 FROM execution_limits",
            (uuid4(), uuid4()),
        )
        runner = await orchestra.runner(add_one)
        async with runner.attached():
            run = await start(orchestra, one)
            assert COMPLETED == (await ended(orchestra, run.id)).status


_RUNS = 40
_LEDGER = """
    CREATE TABLE ledger (at bigserial PRIMARY KEY, running bigint NOT NULL);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock(4711);
        INSERT INTO public.ledger (running)
        SELECT count(*) FROM public.node_executions WHERE status = 'running';
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON node_executions
       FOR EACH STATEMENT EXECUTE FUNCTION note()
"""


@asynccontextmanager
async def ledger(orchestra: Orchestra) -> AsyncIterator[None]:
    """Note at every change of node rows how many run: counted while no other change commits."""
    orchestra.sql.execute(_LEDGER)
    yield
    orchestra.sql.execute("DROP TRIGGER note ON node_executions; DROP FUNCTION note()")


async def test_two_orchestrators_together_never_exceed_a_limit(
    orchestra: Orchestra, one: str
) -> None:
    """I32: by a ledger of the database's, over attempts that end as soon as they begin."""
    async with ledger(orchestra), orchestra.running():
        await limit(orchestra, target=TENANT, max_running=3)
        runner = await orchestra.runner(add_one, slots=16)
        async with runner.kept(), two(orchestra) as other, on_both(runner, other):
            runs = []
            for x in range(_RUNS):
                where = (orchestra, other)[x % 2]
                runs.append((await start(where, one, json.dumps({"x": x}))).id)
            assert 2 == len(set(owners(orchestra).values()))
            done = [(await ended(orchestra, run)).status for run in runs]
            assert [COMPLETED] * _RUNS == done
            await slots(orchestra, 0)
    [(most,)] = orchestra.rows("SELECT max(running) FROM ledger")
    assert most in (1, 2, 3)  # they end at once: how many meet is chance, but never four


async def test_two_orchestrators_keep_the_limit_while_one_of_them_is_restarted(
    orchestra: Orchestra, one: str
) -> None:
    """I9, I32: what it held comes back to it or goes to the other, with its runs."""
    async with ledger(orchestra), orchestra.running():
        await limit(orchestra, target=TENANT, max_running=3)
        runner = await orchestra.runner(never, slots=16)
        async with runner.kept():
            async with two(orchestra) as other, on_both(runner, other) as second:
                runs = []
                for x in range(_RUNS):
                    where = (orchestra, other)[x % 2]
                    runs.append((await start(where, one, json.dumps({"x": x}))).id)
                await runner.until(lambda: len(runner.held) == 3)
                assert 2 == len(set(owners(orchestra).values()))
            assert 3 == len(orchestra.rows("SELECT 1 FROM limit_slots"))
            runner.answer = second.answer = add_one
            succeed(runner, runner.held.values())
            done = [(await ended(orchestra, run)).status for run in runs]
            assert [COMPLETED] * _RUNS == done
            await slots(orchestra, 0)
    [(most,)] = orchestra.rows("SELECT max(running) FROM ledger")
    assert 3 == most


async def test_a_limit_that_is_made_at_one_orchestrator_soon_holds_at_the_other(
    orchestra: Orchestra, one: str
) -> None:
    async with orchestra.running(), two(orchestra) as other:
        runner = await other.runner(never, slots=64)
        async with runner.kept():
            await limit(orchestra, target=TENANT, max_running=1)
            async with asyncio.timeout(5):
                while True:
                    run = (await start(other, one)).id
                    if LIMITED in {each.cause for each in await explained(other, run)}:
                        break


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"max_running": 0}, ("INVALID_ARGUMENT", "INVALID_REQUEST")),
        ({"key_expression": "input.x >"}, ("INVALID_ARGUMENT", "EXPRESSION_INVALID")),
        ({"key_expression": "other.x"}, ("INVALID_ARGUMENT", "EXPRESSION_INVALID")),
        ({"key_expression": "input.x.matches('[')"}, ("INVALID_ARGUMENT", "EXPRESSION_INVALID")),
        ({"key_expression": "(" * 4000}, ("INVALID_ARGUMENT", "EXPRESSION_INVALID")),
        ({"max_starts": 1}, ("INVALID_ARGUMENT", "INVALID_REQUEST")),
        ({"period": Duration(seconds=1)}, ("INVALID_ARGUMENT", "INVALID_REQUEST")),
        ({"workflow_id": str(uuid4())}, ("INVALID_ARGUMENT", "INVALID_REQUEST")),
        (
            {"target": WORKFLOW, "workflow_id": str(uuid4())},
            ("NOT_FOUND", "WORKFLOW_NOT_FOUND"),
        ),
        ({"target": NODE, "node_id": str(uuid4())}, ("NOT_FOUND", "NODE_NOT_FOUND")),
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused_with_its_reason(
    orchestra: Orchestra, said: dict[str, Any], expected: tuple[str, str]
) -> None:
    async with orchestra.running():
        refused = await refusal(limit(orchestra, **{"target": TENANT, "max_running": 1, **said}))
        assert expected == refused[:2]


async def test_a_key_reads_inputs_that_the_workflow_has(orchestra: Orchestra, one: str) -> None:
    """A name that is not an input is in no run: all of them would be counted together."""
    of_one: dict[str, Any] = {"target": WORKFLOW, "workflow_id": one, "max_running": 1}
    async with orchestra.running():
        refused = await refusal(limit(orchestra, **of_one, key_expression="input.xx % 2"))
        assert ("INVALID_ARGUMENT", "EXPRESSION_INVALID") == refused[:2]
        for sound in ("has(input.xx) ? input.xx : 0", "input.x == 1 ? 'input.xx' : ''"):
            await limit(orchestra, **of_one, name=sound[:3], key_expression=sound)


async def test_limits_are_kept_by_name_and_a_repeated_call_changes_nothing(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running():
        request_id = str(uuid4())
        said: dict[str, Any] = {"target": TENANT, "max_running": 1, "request_id": request_id}
        made = await limit(orchestra, **said)
        assert made == await limit(orchestra, **said)
        again = await refusal(limit(orchestra, **{**said, "max_running": 2}))
        assert ("ALREADY_EXISTS", "REQUEST_ID_REUSED") == again[:2]
        taken = await refusal(limit(orchestra, target=TENANT, max_running=1))
        assert ("ALREADY_EXISTS", "LIMIT_EXISTS") == taken[:2]
        second = await limit(orchestra, name="more", target=TENANT, max_running=5)
        listed = await limits(orchestra).ListLimits(
            limit_service_pb2.ListLimitsRequest(page_size=1)
        )
        assert [second] == list(listed.limits)
        rest = await limits(orchestra).ListLimits(
            limit_service_pb2.ListLimitsRequest(page_size=1, page_token=listed.next_page_token)
        )
        assert ([made], "") == (list(rest.limits), rest.next_page_token)


async def test_limits_of_others_are_as_if_they_were_not_there(
    orchestra: Orchestra, one: str
) -> None:
    """X14: neither read nor counted under, by another tenant."""
    stranger = factories.user(orchestra.sql)
    async with orchestra.running():
        theirs = limits(orchestra, stranger.token)
        request = limit_service_pb2.CreateLimitRequest(name="all", target=TENANT, max_running=1)
        await theirs.CreateLimit(request)
        missing = await refusal(
            limits(orchestra).GetLimit(limit_service_pb2.GetLimitRequest(name="all"))
        )
        assert ("NOT_FOUND", "LIMIT_NOT_FOUND") == missing[:2]
        runner = await orchestra.runner(never)
        async with runner.attached():
            for x in range(3):
                request_ = pb.StartExecutionRequest(workflow_id=one, input_json=f'{{"x":{x}}}')
                await orchestra.stub.StartExecution(request_)
            await runner.until(lambda: len(runner.held) == 3)
