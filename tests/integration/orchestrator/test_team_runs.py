"""Runs of a team: its members share them, and who was removed sees them no more."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
import pytest
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

from services.kit.rpc.auth import TEAM_RECHECK_S
from services.kit.rpc.identity import TEAM_CACHE_S
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_schedules import hold

_MOVED = ("python_nodes", "node_version_locks", "workflows", "workflow_node_uses")


def workflow_of(orchestra: Orchestra, team: UUID) -> str:
    one = factories.node(orchestra.sql, orchestra.owner)
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": one},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
    )
    for table in _MOVED:
        orchestra.sql.execute(f"UPDATE {table} SET tenant_id = '{team}'".encode())
    return str(workflow)


async def test_members_share_a_run_and_whoever_is_removed_is_out_within_five_seconds(
    orchestra: Orchestra,
) -> None:
    """X4, X13, B62i: on calls and on a watch that is open; the run itself goes on."""
    member, stranger = factories.user(orchestra.sql), factories.user(orchestra.sql)
    team = factories.team(orchestra.sql, admin=orchestra.owner, user=member)
    acting: dict[str, Any] = {"metadata": (("qflow-tenant", str(team)),)}
    workflow = workflow_of(orchestra, team)
    async with orchestra.running(), (await orchestra.runner(hold)).attached():
        theirs: Any = ExecutionServiceStub(orchestra.channel(member.token))
        ours: Any = orchestra.stub
        start = pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x": 1}')
        for caller in (theirs, ExecutionServiceStub(orchestra.channel(stranger.token))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await caller.StartExecution(start)
            assert grpc.StatusCode.NOT_FOUND == caught.value.code()
        run = (await theirs.StartExecution(start, **acting)).execution
        ask = pb.GetExecutionRequest(execution_id=run.id)
        assert run.id == (await ours.GetExecution(ask, **acting)).execution.id
        watch = theirs.WatchExecution(pb.WatchExecutionRequest(execution_id=run.id), **acting)
        await watch.read()
        await orchestra.change("DELETE FROM tenant_members WHERE user_id = %s", member.id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_on(watch)
        assert grpc.StatusCode.PERMISSION_DENIED == caught.value.code()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await theirs.GetExecution(ask, **acting)
        assert grpc.StatusCode.PERMISSION_DENIED == caught.value.code()
        # By the clocks that they go by: what an answer holds, and how often a watch asks again.
        assert TEAM_CACHE_S + TEAM_RECHECK_S < 5
        assert run.id == (await ours.GetExecution(ask, **acting)).execution.id
    assert [(team, member.id)] == orchestra.rows(
        "SELECT tenant_id, created_by FROM workflow_executions"
    )


async def _read_on(watch: Any) -> None:
    while True:
        await watch.read()
