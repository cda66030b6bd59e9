"""Turns and priorities: who floods runners or places holds up nobody else."""

from __future__ import annotations

from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import start
from tests.integration.orchestrator.test_limits import NODE, TENANT, limit, never, succeed, x_of


def workflow_of(orchestra: Orchestra, user: factories.User, node: factories.Node) -> str:
    """Give a workflow of one node in a user's own tenant."""
    return str(
        factories.workflow(
            orchestra.sql,
            user,
            nodes={"a": node},
            edges=[("", "x", "a", "x")],
            outputs=[("y", "a")],
        )
    )


async def test_a_priority_takes_no_turn_of_another_tenant(orchestra: Orchestra) -> None:
    """I35: a flood at the highest there is, and a run at the lowest."""
    stranger = factories.user(orchestra.sql)
    loud, quiet = (
        workflow_of(orchestra, user, factories.node(orchestra.sql, user))
        for user in (orchestra.owner, stranger)
    )
    async with orchestra.running():
        runner = await orchestra.runner(never, slots=1)
        async with runner.attached():
            for x in range(30):
                await start(orchestra, loud, f'{{"x":{x}}}', priority=100)
            await runner.until(lambda: 1 == len(runner.held))
            stub = ExecutionServiceStub(orchestra.channel(stranger.token))
            await stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=quiet, input_json='{"x":100}', priority=-100)
            )
            for count in (2, 3):
                succeed(runner, runner.held.values())
                await runner.until(lambda count=count: count == len(runner.assigns))  # type: ignore[misc]
    assert 100 in map(x_of, runner.assigns)


async def test_the_highest_priority_is_next_whichever_limits_others_are_under(
    orchestra: Orchestra,
) -> None:
    """I35: those that came first are under a limit of their node too."""
    node, other = (factories.node(orchestra.sql, orchestra.owner) for _ in range(2))
    many, urgent = (workflow_of(orchestra, orchestra.owner, each) for each in (node, other))
    async with orchestra.running():
        await limit(orchestra, name="all", target=TENANT, max_running=1)
        await limit(orchestra, name="node", target=NODE, node_id=str(node.id), max_running=5)
        runner = await orchestra.runner(never)
        async with runner.attached():
            for x in range(20):
                await start(orchestra, many, f'{{"x":{x}}}')
            await runner.until(lambda: 1 == len(runner.held))
            await start(orchestra, urgent, '{"x":100}', priority=1)
            succeed(runner, runner.held.values())
            await runner.until(lambda: 2 == len(runner.assigns))
    assert 100 == x_of(list(runner.assigns)[-1])
