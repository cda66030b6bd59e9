"""F1-F5, F20: kill -9 of each process while one node of a run runs and two have not begun."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import grpc
import psutil
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.orchestrator.v1 import execution_service_pb2
from qflow.registry.v1 import (
    variable_service_pb2,
    workflow_alias_service_pb2,
    workflow_service_pb2,
)
from qflow.registry.v1.variable_service_pb2_grpc import VariableServiceStub
from qflow.registry.v1.workflow_alias_service_pb2_grpc import WorkflowAliasServiceStub

from services.standalone.addresses import SERVICES
from services.standalone.process import wait_until
from tests.support.client import COMPLETED, Step, connected
from tests.support.furnished import furnish
from tests.support.invariants import broken
from tests.support.ledger import NODES, Ledger
from tests.support.suite import Suite
from tests.support.suite_fixtures import QUICK, discard

ONCE = dict.fromkeys(NODES, 1)
HELD_TWICE = ONCE | {"held": 2}


@pytest.fixture(scope="module")
def ledger() -> Iterator[Ledger]:
    folder = Path(tempfile.mkdtemp(prefix="qfl-", dir="/tmp"))
    yield Ledger(folder)
    discard(folder)


@pytest.fixture(scope="module")
def hurt(ledger: Ledger) -> Iterator[Suite]:
    """One suite that has to survive every test of this file, one after the other."""
    folder = Path(tempfile.mkdtemp(prefix="qff-", dir="/tmp"))
    furnish(folder, QUICK)
    suite = Suite(folder, {**QUICK, **ledger.env})
    try:
        yield suite.start()
    finally:
        suite.stop()
        discard(folder)


def _outcomes(suite: Suite, execution_id: str) -> list[tuple[str, str, object]]:
    with suite.sql() as connection:
        return connection.execute(
            """
            SELECT node_id, status, (output_data::jsonb ->> 'result')::int FROM node_executions
             WHERE workflow_execution_id = %s ORDER BY execution_order
            """,
            (UUID(execution_id),),
        ).fetchall()


async def _struck(
    suite: Suite,
    ledger: Ledger,
    victims: tuple[str, ...],
    *,
    begun: dict[str, int],
    or_begun: dict[str, int] | None = None,
) -> None:
    """Kill processes while `held` runs; prove that the run completes, each outcome once."""
    run = "kill-" + "-".join(victims)
    async with connected(suite) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": run, "start": 10})
        ledger.wait_begun(run)
        hit = {victim: suite.kill_service(victim) for victim in victims}
        for victim, mark in hit.items():
            suite.wait_restarted(victim, mark)
        ledger.wait_begun(run, times=begun["held"])
        ledger.open_gate(run)
        execution = await client.finished(execution_id)
        assert execution.status == COMPLETED, execution.error
        assert json.loads(execution.output_json) == {"total": 14}
        assert dict(ledger.begun(run)) in (begun, or_begun or begun)
        assert _outcomes(suite, execution_id) == [
            (node, "completed", 11 + at) for at, node in enumerate(NODES)
        ]
        with suite.sql() as connection:
            assert broken(connection) == {}
        # I39: once the fault has healed everything works as before.
        ledger.open_gate(f"{run}-after")
        after = await client.run(workflow, {"run": f"{run}-after", "start": 10})
        assert after.status == COMPLETED


_LARGE = 900_000  # characters: far above what an assignment carries, below what a run may be given
_PULLS = 8


@pytest.mark.slow
async def test_no_attempt_fails_when_the_orchestrator_is_killed_while_it_gives_inputs(
    hurt: Suite,
) -> None:
    """F2, rule 7: a runner that pulls large inputs asks whoever comes after it.

    The runner is stopped until its assignments wait for it, so that it begins to pull all at once.
    """
    async with connected(hurt) as client:
        node = await client.create_node(
            "size", "def size(text: str) -> int:\n    return len(text)\n"
        )
        workflow = await client.create_workflow(
            "large",
            [Step("size", node)],
            [".text > size.text"],
            inputs={"text": "str"},
            outputs=["size = size.result"],
        )
        await client.run(workflow, {"text": "x"})
        with hurt.sql() as connection:

            def tells(query: str) -> bool:
                return connection.execute(query).fetchone() is not None

            resting = (
                "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM runner_members WHERE state = 'live')"
            )
            assert wait_until(lambda: tells(resting), timeout_s=30.0)
            runner = psutil.Process(hurt.marks()["runner"].pid)
            runner.suspend()
            try:
                started = await asyncio.gather(
                    *(client.start(workflow, {"text": "x" * _LARGE}) for _ in range(_PULLS))
                )
                assigned = (
                    "SELECT 1 FROM node_executions WHERE status = 'running'"
                    f" HAVING count(*) = {_PULLS}"
                )
                assert wait_until(lambda: tells(assigned), timeout_s=30.0)
            finally:
                runner.resume()
            # It takes its lease, and then it pulls.
            held = "SELECT 1 FROM runner_members WHERE state = 'live'"
            assert wait_until(lambda: tells(held), timeout_s=30.0)
            hit = hurt.kill_service("orchestrator")
            hurt.wait_restarted("orchestrator", hit)
            for execution_id in started:
                execution = await client.finished(execution_id)
                assert execution.status == COMPLETED, execution.error
                assert json.loads(execution.output_json) == {"size": _LARGE}
            counted = connection.execute(
                "SELECT count(*), sum(retry_count), sum(delivery_count) FROM node_executions"
                " WHERE workflow_execution_id = ANY(%s)",
                (list(map(UUID, started)),),
            ).fetchone()
            assert counted == (_PULLS, 0, 0)
            assert broken(connection) == {}


@pytest.mark.parametrize("victim", ["registry", "orchestrator", "telemetry"])
async def test_no_node_runs_twice_when_a_service_that_runs_none_is_killed(
    victim: str, hurt: Suite, ledger: Ledger
) -> None:
    """F1, F2, F4; I1-I11, I13, I39: the runner goes on and hands its result to whoever comes."""
    await _struck(hurt, ledger, (victim,), begun=ONCE)


async def test_what_a_killed_runner_held_runs_once_more_and_nothing_else_does(
    hurt: Suite, ledger: Ledger
) -> None:
    """F3; I10, I11: the extra attempt has a lapsed lease between, its outcome is one."""
    await _struck(hurt, ledger, ("runner",), begun=HELD_TWICE)
    with hurt.sql() as connection:
        lost = connection.execute(
            """
            SELECT n.node_id, a.outcome, n.retry_count, n.delivery_count, a.token < n.attempt_token
              FROM node_attempts a JOIN node_executions n ON n.id = a.node_execution_id
            """
        ).fetchall()
    assert lost == [("held", "lost", 0, 1, True)]


async def test_nothing_fails_when_the_cache_is_killed(hurt: Suite, ledger: Ledger) -> None:
    """F20, G7: Redis is never the truth."""
    await _struck(hurt, ledger, ("redis",), begun=ONCE)


async def test_nothing_committed_is_lost_when_postgresql_is_killed(
    hurt: Suite, ledger: Ledger
) -> None:
    """F11: services wait for it, no process ends.

    On a slow machine its recovery may outlast the runner's lease: then `held` begins once more.
    """
    before = {name: hurt.marks()[name] for name in SERVICES}
    await _struck(hurt, ledger, ("postgres",), begun=ONCE, or_begun=HELD_TWICE)
    assert {name: hurt.marks()[name] for name in SERVICES} == before


@pytest.mark.slow
async def test_a_stall_longer_than_the_leases_costs_one_attempt_and_no_run(
    hurt: Suite, ledger: Ledger
) -> None:
    """F12, F15, I36: a runner fenced for its silence is given nothing until it has noticed."""
    run = "stalled"
    async with connected(hurt) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": run, "start": 10})
        ledger.wait_begun(run)
        server = psutil.Process(hurt.marks()["postgres"].pid)
        stopped = [server, *server.children(recursive=True)]
        for each in stopped:
            each.suspend()
        await asyncio.sleep(2 * float(QUICK["QFLOW_LEASE_TTL_S"]))  # the leases run out meanwhile
        for each in stopped:
            each.resume()
        ledger.wait_begun(run, times=2)
        ledger.open_gate(run)
        execution = await client.finished(execution_id)
    assert execution.status == COMPLETED, execution.error
    assert dict(ledger.begun(run)) == HELD_TWICE
    with hurt.sql() as connection:
        # What the earlier incarnation's sandboxes were, the runner writes down as it goes.
        await asyncio.to_thread(wait_until, lambda: not broken(connection), timeout_s=30)
        assert broken(connection) == {}


async def test_a_run_survives_the_death_of_all_four_services_at_once(
    hurt: Suite, ledger: Ledger
) -> None:
    """F5: everything comes back from PostgreSQL alone."""
    await _struck(hurt, ledger, SERVICES, begun=HELD_TWICE)


@pytest.mark.slow
async def test_a_run_survives_the_kill_of_the_whole_suite(hurt: Suite, ledger: Ledger) -> None:
    """A start after kill -9 of the supervisor finds the run and completes it."""
    run = "kill-everything"
    async with connected(hurt) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": run, "start": 10})
        ledger.wait_begun(run)
    left = hurt.marks()
    hurt.kill()
    hurt.start()
    assert [name for name, mark in left.items() if mark.is_alive()] == []
    ledger.wait_begun(run, times=2)
    ledger.open_gate(run)
    async with connected(hurt) as client:
        execution = await client.finished(execution_id)
    assert execution.status == COMPLETED, execution.error
    assert dict(ledger.begun(run)) == HELD_TWICE
    with hurt.sql() as connection:
        assert broken(connection) == {}


async def _set_name(suite: Suite, value: str) -> None:
    """Set the variable that the last node of the chain takes its name from."""
    async with suite.channel("registry") as channel:
        await VariableServiceStub(channel).SetVariable(
            variable_service_pb2.SetVariableRequest(
                name="last_name", type_json='{"t":"str"}', value_json=json.dumps(value)
            )
        )


async def test_nodes_that_begin_after_a_kill_have_the_variables_of_the_start(
    hurt: Suite, ledger: Ledger
) -> None:
    """F2: started by alias; the variable and the alias change while nobody owns the run."""
    run = "kill-variables"
    await _set_name(hurt, "last")
    async with connected(hurt) as client, hurt.channel("registry") as channel:
        workflow = await ledger.workflow(client)
        [last] = [each for each in workflow.definition.nodes if each.id == "last"]
        [named] = [each for each in last.literals if each.input == "name"]
        last.literals.remove(named)
        last.variables.add(input="name", variable="last_name")
        await client.workflows.UpdateWorkflow(
            workflow_service_pb2.UpdateWorkflowRequest(
                workflow_id=workflow.id,
                definition=workflow.definition,
                update_mask=FieldMask(paths=["definition"]),
            )
        )
        point = workflow_alias_service_pb2.SetWorkflowAliasRequest(
            workflow_id=workflow.id, alias="prod", version=2
        )
        aliases = WorkflowAliasServiceStub(channel)
        await aliases.SetWorkflowAlias(point)
        started = await client.executions.StartExecution(
            execution_service_pb2.StartExecutionRequest(
                workflow_id=workflow.id,
                workflow_alias="prod",
                input_json=json.dumps({"run": run, "start": 10}),
            )
        )
        assert started.execution.workflow_version == 2
        ledger.wait_begun(run)
        hit = hurt.kill_service("orchestrator")
        await _set_name(hurt, "changed")
        point.version = 1
        await aliases.SetWorkflowAlias(point)
        hurt.wait_restarted("orchestrator", hit)
        ledger.open_gate(run)
        execution = await client.finished(started.execution.id)
    assert execution.status == COMPLETED, execution.error
    assert dict(ledger.begun(run)) == ONCE
    with hurt.sql() as connection:
        assert broken(connection) == {}


def _may_write(suite: Suite, *, may: bool) -> None:
    """Have the server refuse writes, or take them again: in sessions that are open, too."""
    with suite.sql() as connection:
        connection.execute("SET default_transaction_read_only = off")
        if may:
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        else:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")


@pytest.mark.slow
async def test_a_database_that_takes_no_writes_holds_runs_up_and_fails_none(
    hurt: Suite, ledger: Ledger
) -> None:
    """F14, I1, I39: whoever writes is told that it is unavailable; no process ends."""
    run = "read-only"
    before = {name: hurt.marks()[name] for name in SERVICES}
    async with connected(hurt) as client:
        workflow = await ledger.workflow(client)
        execution_id = await client.start(workflow, {"run": run, "start": 10})
        ledger.wait_begun(run)
        _may_write(hurt, may=False)
        try:
            ledger.open_gate(run)
            for refused in (
                client.create_node("late", "def late() -> int:\n    return 1\n"),
                client.start(workflow, {"run": f"{run}-refused", "start": 1}),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await refused
                assert grpc.StatusCode.UNAVAILABLE == error.value.code()
        finally:
            _may_write(hurt, may=True)
        execution = await client.finished(execution_id)
        assert execution.status == COMPLETED, execution.error
        assert dict(ledger.begun(run)) in (ONCE, HELD_TWICE)
        ledger.open_gate(f"{run}-after")
        after = await client.run(workflow, {"run": f"{run}-after", "start": 10})
        assert after.status == COMPLETED
    assert {name: hurt.marks()[name] for name in SERVICES} == before
    with hurt.sql() as connection:
        await asyncio.to_thread(wait_until, lambda: not broken(connection), timeout_s=30)
        assert broken(connection) == {}
