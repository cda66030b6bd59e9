"""A version or an alias that is not there is one answer, whichever call names it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1 import run_service_pb2, trigger_service_pb2

from tests import factories
from tests.integration.orchestrator import test_plans, test_schedules, test_triggers
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import ended, reruns, runs, start
from tests.integration.orchestrator.test_aliases import point
from tests.integration.orchestrator.test_floating import details
from tests.integration.orchestrator.test_reruns import fork, node, rerun
from tests.integration.orchestrator.test_runs import add_one
from tests.integration.orchestrator.test_schedules import workflow

_GIVEN = '{"x":1}'


async def told(call: Awaitable[object]) -> tuple[str, str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    reason, fields = details(refused.value)
    return refused.value.code().name, reason, fields


async def test_every_call_tells_alike_of_a_version_that_is_not_there(orchestra: Orchestra) -> None:
    one = factories.node(orchestra.sql, orchestra.owner)
    workflow_id = workflow(orchestra)
    async with orchestra.running(), (await orchestra.runner(add_one)).attached():
        done = await start(orchestra, workflow_id)
        await ended(orchestra, done.id)
        starting = pb.StartExecutionRequest(
            workflow_id=workflow_id, workflow_version=9, input_json=_GIVEN
        )
        alone = run_service_pb2.RunNodeRequest(
            node_id=str(one.id), node_version=9, input_json=_GIVEN
        )
        of_node = node("a", node_version=9)
        calls: dict[str, tuple[Any, str]] = {
            "StartExecution": (orchestra.stub.StartExecution(starting), "workflow_version"),
            "ExecuteWorkflow": (
                runs(orchestra).ExecuteWorkflow(
                    run_service_pb2.ExecuteWorkflowRequest(start=starting)
                ),
                "workflow_version",
            ),
            "PlanExecution": (
                test_plans.plan(orchestra, workflow_id, workflow_version=9),
                "workflow_version",
            ),
            "RunNode": (runs(orchestra).RunNode(alone), "node_version"),
            "RerunExecution": (
                reruns(orchestra).RerunExecution(rerun(done.id, of_node)),
                "from_nodes[0].node_version",
            ),
            "ForkExecution": (
                reruns(orchestra).ForkExecution(fork(done.id, of_node)),
                "from_nodes[0].node_version",
            ),
            "CreateSchedule": (
                test_schedules.create(orchestra, workflow_id, workflow_version=9),
                "workflow_version",
            ),
        }
        seen = {name: await told(call) for name, (call, _) in calls.items()}
    expected = {
        name: ("NOT_FOUND", "VERSION_NOT_FOUND", [field]) for name, (_, field) in calls.items()
    }
    assert expected == seen


async def test_every_call_tells_alike_of_an_alias_that_is_not_there(orchestra: Orchestra) -> None:
    workflow_id, alias = workflow(orchestra), "staging"
    point(orchestra, workflow_id, 1, "prod")
    async with orchestra.running():
        trigger = (await test_triggers.create(orchestra, workflow_alias="")).trigger
        kept = await test_triggers.create(orchestra, workflow_id=workflow_id, workflow_alias="prod")
        schedule = await test_schedules.create(orchestra, workflow_id, workflow_alias="prod")
        assert "prod" == kept.trigger.workflow_alias == schedule.definition.workflow_alias
        calls: dict[str, Awaitable[Any]] = {
            "StartExecution": orchestra.stub.StartExecution(
                pb.StartExecutionRequest(
                    workflow_id=workflow_id, workflow_alias=alias, input_json=_GIVEN
                )
            ),
            "PlanExecution": test_plans.plan(orchestra, workflow_id, workflow_alias=alias),
            "CreateSchedule": test_schedules.create(orchestra, workflow_id, workflow_alias=alias),
            "CreateTrigger": test_triggers.create(
                orchestra, workflow_id=workflow_id, workflow_alias=alias
            ),
            "UpdateTrigger": test_triggers.stub(orchestra).UpdateTrigger(
                trigger_service_pb2.UpdateTriggerRequest(
                    trigger_id=trigger.id,
                    workflow_alias=alias,
                    update_mask=FieldMask(paths=["workflow_alias"]),
                )
            ),
        }
        seen = {name: await told(call) for name, call in calls.items()}
        # What else of a trigger changes is not held against an alias that went since.
        await orchestra.change("DELETE FROM workflow_aliases")
        renamed = await test_triggers.stub(orchestra).UpdateTrigger(
            trigger_service_pb2.UpdateTriggerRequest(
                trigger_id=kept.trigger.id, name="other", update_mask=FieldMask(paths=["name"])
            )
        )
        assert "other" == renamed.trigger.name
    assert dict.fromkeys(calls, ("NOT_FOUND", "ALIAS_NOT_FOUND", ["workflow_alias"])) == seen
