"""The published settings, what is in force, and settings that there are not."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.registry.v1 import settings_service_pb2 as pb
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc
from qflow.registry.v1.settings_service_pb2_grpc import SettingsServiceStub

from services.registry.rpc.unknown_settings import check_settings_known
from tests.integration.registry.conftest import Client, place, refused
from tests.support.cost import counted

DEFAULT, DEPLOYMENT, WORKFLOW, NODE = (
    pb.SETTING_LEVEL_DEFAULT,
    pb.SETTING_LEVEL_DEPLOYMENT,
    pb.SETTING_LEVEL_WORKFLOW,
    pb.SETTING_LEVEL_NODE,
)


async def create(client: Client, definition: Any) -> workflow_pb2.Workflow:
    request = workflow_rpc.CreateWorkflowRequest(name="w", definition=definition)
    made: workflow_pb2.Workflow = (await client.workflows.CreateWorkflow(request)).workflow
    return made


async def in_force(client: Client, workflow_id: str, node: str = "") -> dict[str, tuple[str, int]]:
    stub = SettingsServiceStub(client.channel)
    answer = await stub.GetEffectiveSettings(
        pb.GetEffectiveSettingsRequest(workflow_id=workflow_id, workflow_node=node)
    )
    assert all(each.enforced_by for each in answer.settings)
    return {each.name: (each.value_json, each.source) for each in answer.settings}


LIMITS = {
    "limits.cpu_millicores": ("null", DEFAULT),
    "limits.processes": ("128", DEFAULT),
    "limits.open_files": ("1024", DEFAULT),
    "limits.temporary_bytes": (str(256 << 20), DEFAULT),
    "limits.output_bytes": (str(64 << 20), DEFAULT),
}


async def test_the_schema_tells_what_is_enforced_and_by_whom(client: Client) -> None:
    stub = SettingsServiceStub(client.channel)
    answer = await stub.GetSettingsSchema(pb.GetSettingsSchemaRequest())
    found = {each.name: each for each in answer.settings}
    timeout = found["timeout"]
    assert (timeout.unit, timeout.default_value, timeout.minimum, timeout.maximum) == (
        "ms",
        600_000,
        1,
        86_400_000,
    )
    assert (timeout.enforced_by, list(timeout.levels)) == ("runner", [DEPLOYMENT, NODE])
    assert not found["settings.timeout"].HasField("default_value")
    assert list(found["python_version"].levels) == [DEPLOYMENT, NODE]
    assert all(each.description and each.enforcement for each in answer.settings)


async def test_what_is_in_force_says_where_it_comes_from(client: Client) -> None:
    one = await client.node("def one() -> int: return 1")
    newer = await client.node("def one() -> int: return 1", python_version="3.12")
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[
            place("a", on=one),
            place(
                "b",
                on=newer,
                timeout=Duration(seconds=5),
                retry=workflow_pb2.RetryPolicy(factor=3, jitter=0.1),
            ),
        ]
    )
    made = await create(client, definition)
    assert await in_force(client, made.id) == {"settings.timeout": ("null", DEFAULT)}
    assert await in_force(client, made.id, "a") == {
        "timeout": ("600000", DEFAULT),
        "memory_limit_bytes": (str(512 << 20), DEFAULT),
        **LIMITS,
        "queue_timeout": ("null", DEFAULT),
        "total_timeout": ("null", DEFAULT),
        "heartbeat_timeout": ("null", DEFAULT),
        "cache_ttl": ("null", DEFAULT),
        "concurrency": ("1", DEFAULT),
        "retry.max_retries": ("0", DEFAULT),
        "python_version": ('"3.11"', DEPLOYMENT),
    }
    assert await in_force(client, made.id, "b") == {
        "timeout": ("5000", NODE),
        "memory_limit_bytes": (str(512 << 20), DEFAULT),
        **LIMITS,
        "queue_timeout": ("null", DEFAULT),
        "total_timeout": ("null", DEFAULT),
        "heartbeat_timeout": ("null", DEFAULT),
        "cache_ttl": ("null", DEFAULT),
        "concurrency": ("1", DEFAULT),
        "retry.max_retries": ("3", DEFAULT),
        "retry.initial_delay": ("1000", DEFAULT),
        "retry.factor": ("3.0", NODE),
        "retry.max_delay": ("60000", DEFAULT),
        "retry.jitter": ("0.1", DEFAULT),
        "python_version": ('"3.12"', NODE),
    }
    definition.settings.timeout.FromSeconds(60)
    made = await create(client, definition)
    assert await in_force(client, made.id) == {"settings.timeout": ("60000", WORKFLOW)}
    said = await refused(in_force(client, made.id, "z"))
    assert (said.code, said.violations) == (
        grpc.StatusCode.NOT_FOUND,
        [("workflow_node", "WORKFLOW_NODE_NOT_FOUND")],
    )


async def test_the_limits_of_a_node_are_those_it_asks_for(client: Client) -> None:
    one = await client.node("def one() -> int: return 1")
    limits = workflow_pb2.NodeLimits(cpu_millicores=500, processes=9)
    made = await create(
        client, workflow_pb2.WorkflowDefinition(nodes=[place("a", on=one, limits=limits)])
    )
    assert limits == made.definition.nodes[0].limits
    found = await in_force(client, made.id, "a")
    assert ("500", NODE) == found["limits.cpu_millicores"]
    assert ("9", NODE) == found["limits.processes"]
    assert LIMITS["limits.open_files"] == found["limits.open_files"]


def varint(number: int) -> bytes:
    """A field with this number and the value 1."""
    key = number << 3
    return bytes([key & 0x7F | 0x80, key >> 7, 1])


@pytest.mark.parametrize("part", ["settings", "nodes[0]", "nodes[0].retry"])
async def test_a_setting_that_is_not_known_is_refused_where_it_stands(
    client: Client, part: str
) -> None:
    """B54: a client of another version learns that nothing would enforce what it says."""
    one = await client.node("def one() -> int: return 1")
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=one, retry=workflow_pb2.RetryPolicy())]
    )
    definition.settings.timeout.FromSeconds(60)
    holder = {
        "settings": definition.settings,
        "nodes[0]": definition.nodes[0],
        "nodes[0].retry": definition.nodes[0].retry,
    }[part]
    holder.MergeFromString(varint(999))
    said = await refused(create(client, definition))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SETTING_UNKNOWN")
    assert said.violations == [(f"definition.{part}", "SETTING_UNKNOWN")]
    assert "999" in said.text


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("definition.settings.timeout", {"timeout": Duration(seconds=-1)}),
        ("definition.settings.timeout", {"timeout": Duration(seconds=10**11)}),
        ("definition.settings.timeout", {"timeout": Duration()}),
    ],
)
async def test_a_timeout_of_a_run_is_within_its_limits(
    client: Client, field: str, settings: dict[str, Any]
) -> None:
    """B54."""
    one = await client.node("def one() -> int: return 1")
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=one)], settings=workflow_pb2.WorkflowSettings(**settings)
    )
    said = await refused(create(client, definition))
    assert said.code == grpc.StatusCode.INVALID_ARGUMENT
    assert said.violations[0][0] == field


def test_looking_for_unknown_settings_costs_little() -> None:
    retry = workflow_pb2.RetryPolicy(max_retries=1)
    nodes = [workflow_pb2.WorkflowNode(id="a", retry=retry) for _ in range(10_000)]
    definition = workflow_pb2.WorkflowDefinition(nodes=nodes)
    with counted() as cost:
        check_settings_known(definition)
    assert cost.ms < 500
