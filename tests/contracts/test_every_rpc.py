"""Every RPC of the running suite, found by reflection: who is let in, on every kind of call."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from qflow.auth.v1 import auth_pb2

from services.kit.ids import token_sha256
from services.kit.rpc.channel import open_channel
from services.kit.rpc.reflection import V1, V1ALPHA
from tests import factories
from tests.support.client import Client, Step
from tests.support.suite import Suite

SERVICES = ("registry", "orchestrator", "runner", "telemetry")
OPEN = {"grpc.health.v1.Health", V1, V1ALPHA}
# Rows of files whose bytes nobody ever asks for.
PLANTS = {"files"}
_SCHEDULE = {"name": "s", "timing": {"cron": {"expression": "0 0 1 1 *"}}}
_SUBSCRIPTION = {
    "name": "s",
    "url": "https://example.com/",
    "eventTypes": ["EVENT_TYPE_EXECUTION_FAILED"],
}
_GRAPH = {"definition": {"nodes": [{"id": "a"}]}}


@dataclass(frozen=True)
class Rpc:
    """One RPC as reflection tells of it."""

    address: str
    path: str
    kind: str
    rule: auth_pb2.AuthRule


def listeners(suite: Suite) -> dict[str, str]:
    """Every address of the suite, the one for runners too."""
    endpoints = suite.endpoints
    assert {*SERVICES, "attach"} == set(endpoints)
    return endpoints


async def every_rpc(suite: Suite, version: str = V1) -> list[Rpc]:
    return [rpc for address in listeners(suite).values() async for rpc in _rpcs(address, version)]


async def _rpcs(address: str, version: str) -> AsyncIterator[Rpc]:
    async with reflected(address, version) as ask:
        listed = await ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {each.name for each in listed.list_services_response.service}
        assert names >= OPEN
        for name in sorted(names - OPEN):
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
            answer = (await ask(request)).file_descriptor_response
            files = [FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_proto]
            for rpc in _described(files, name, address):
                yield rpc


def _described(files: list[FileDescriptorProto], name: str, address: str) -> Iterator[Rpc]:
    for file in files:
        for service in file.service:
            if f"{file.package}.{service.name}" == name:
                for method in service.method:
                    kind = "_".join(
                        "stream" if streams else "unary"
                        for streams in (method.client_streaming, method.server_streaming)
                    )
                    rule = method.options.Extensions[auth_pb2.rule]
                    yield Rpc(address, f"/{name}/{method.name}", kind, rule)


@asynccontextmanager
async def reflected(address: str, version: str) -> AsyncIterator[Any]:
    """Ask a server about itself, without a token."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(
            f"/{version}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(timeout=20)

        async def ask(request: reflection_pb2.ServerReflectionRequest) -> Any:
            await call.write(request)
            return await call.read()

        yield ask
        await call.done_writing()


async def code_of(
    rpc: Rpc, token: str | None, *, timeout_s: float = 20, tenant: object = ""
) -> grpc.StatusCode:
    """Call an RPC with an empty request, perhaps for a team, and tell how that ended."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    if tenant:
        metadata.append(("qflow-tenant", str(tenant)))
    async with grpc.aio.insecure_channel(rpc.address) as channel:
        multi: Any = getattr(channel, rpc.kind)(rpc.path)
        # A stream is refused before its first message; writing one meanwhile may be told as the
        # client library's own INTERNAL ("Internal error from Core"), which no server said.
        requests = () if rpc.kind.startswith("stream") else (b"",)
        call = multi(*requests, metadata=metadata, timeout=timeout_s)
        try:
            if rpc.kind.endswith("unary"):
                await call
            else:
                await call.read()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def codes(
    rpcs: list[Rpc], token: str | None, *, tenant: object = ""
) -> dict[str, grpc.StatusCode]:
    found = await asyncio.gather(*(code_of(rpc, token, tenant=tenant) for rpc in rpcs))
    return {rpc.path: code for rpc, code in zip(rpcs, found, strict=True)}


async def test_reflection_lists_the_same_rpcs_under_both_names(suite: Suite) -> None:
    rpcs = await every_rpc(suite)
    assert rpcs == await every_rpc(suite, V1ALPHA)
    packages = {rpc.path.split("/")[1].rsplit(".", 1)[0] for rpc in rpcs}
    assert {f"qflow.{name}.v1" for name in SERVICES} == packages
    assert len({rpc.path for rpc in rpcs}) == len(rpcs)


async def test_every_rpc_of_the_contract_is_served(
    suite: Suite, contract: list[FileDescriptorProto]
) -> None:
    promised = {
        f"/{file.package}.{service.name}/{method.name}"
        for file in contract
        for service in file.service
        for method in service.method
    }
    assert promised == {rpc.path for rpc in await every_rpc(suite)}


@pytest.mark.parametrize("token", ["bogus", "qf_" + "a" * 43, "", None])
async def test_a_wrong_token_gets_unauthenticated_from_every_rpc(
    suite: Suite, token: str | None
) -> None:
    """X1, X2, X7."""
    guarded = [
        rpc
        for rpc in await every_rpc(suite)
        if auth_pb2.AUDIENCE_ANONYMOUS not in rpc.rule.audiences
    ]
    assert {"unary_unary", "unary_stream", "stream_stream"} <= {rpc.kind for rpc in guarded}
    expected = dict.fromkeys((rpc.path for rpc in guarded), grpc.StatusCode.UNAUTHENTICATED)
    assert expected == await codes(guarded, token)


async def test_an_anonymous_rpc_answers_without_a_token(suite: Suite) -> None:
    open_rpcs = [
        rpc for rpc in await every_rpc(suite) if auth_pb2.AUDIENCE_ANONYMOUS in rpc.rule.audiences
    ]
    assert {
        "/qflow.orchestrator.v1.TriggerService/FireTrigger": grpc.StatusCode.INVALID_ARGUMENT,
        "/qflow.registry.v1.SessionService/SignIn": grpc.StatusCode.INVALID_ARGUMENT,
        "/qflow.registry.v1.UserService/AcceptInvitation": grpc.StatusCode.INVALID_ARGUMENT,
        "/qflow.registry.v1.UserService/ResetPassword": grpc.StatusCode.INVALID_ARGUMENT,
    } == await codes(open_rpcs, None)


async def test_services_and_users_are_not_let_in_at_each_others_doors(suite: Suite) -> None:
    """X17: the runner's token at what is for users, the owner's at what is for services."""
    rpcs = await every_rpc(suite)
    runner_token = (suite.home.secrets / "runner.token").read_text("utf-8").strip()
    for audience, token in (
        (auth_pb2.AUDIENCE_USER, runner_token),
        (auth_pb2.AUDIENCE_SERVICE, suite.owner_token),
    ):
        meant = [rpc for rpc in rpcs if [audience] == rpc.rule.audiences]
        expected = dict.fromkeys((rpc.path for rpc in meant), grpc.StatusCode.PERMISSION_DENIED)
        assert meant
        assert expected == await codes(meant, token)


# What a request needs besides the id that is asked for; `{own}` is a workflow
# of the caller's, `{node}` a node, `{subscription}` one to events.
_REST: dict[tuple[str, str], dict[str, Any]] = {
    ("CreateWorkflow", "definition.nodes.node_id"): {"name": "w", **_GRAPH},
    ("CheckWorkflow", "definition.nodes.node_id"): _GRAPH,
    ("UpdateNode", "node_id"): {"name": "x", "updateMask": "name"},
    ("UpdateCustomType", "custom_type_id"): {"description": "x"},
    ("UpdateWorkflow", "workflow_id"): {"name": "x", "updateMask": "name"},
    ("UpdateWorkflow", "definition.nodes.node_id"): {
        "workflowId": "{own}",
        "updateMask": "definition",
        **_GRAPH,
    },
    ("BatchStartExecutions", "starts.workflow_id"): {"starts": [{}]},
    ("RollbackNode", "node_id"): {"version": 1},
    ("RollbackWorkflow", "workflow_id"): {"version": 1},
    ("GetTag", "tag_id"): {"kind": "TAG_KIND_NODE"},
    ("UpdateTag", "tag_id"): {"kind": "TAG_KIND_NODE", "name": "x", "updateMask": "name"},
    ("DeleteTag", "tag_id"): {"kind": "TAG_KIND_NODE"},
    ("ChangeNodeTags", "add_tag_ids"): {"nodeId": "{node}"},
    ("ChangeNodeTags", "remove_tag_ids"): {"nodeId": "{node}"},
    ("ChangeWorkflowTags", "add_tag_ids"): {"workflowId": "{own}"},
    ("ChangeWorkflowTags", "remove_tag_ids"): {"workflowId": "{own}"},
    ("SetWorkflowAlias", "workflow_id"): {"alias": "prod", "version": 1},
    ("RollbackWorkflowAlias", "workflow_id"): {"alias": "prod"},
    ("DeleteWorkflowAlias", "workflow_id"): {"alias": "prod"},
    ("GetWorkflowAlias", "workflow_id"): {"alias": "prod"},
    ("CreateWorkflowFromTemplate", "template_id"): {"name": "w"},
    ("SetVariable", "workflow_id"): {
        "name": "x",
        "typeJson": '{"t":"int"}',
        "valueJson": "1",
    },
    ("GetVariable", "workflow_id"): {"name": "x"},
    ("DeleteVariable", "workflow_id"): {"name": "x"},
    ("CreateLimit", "workflow_id"): {
        "name": "x",
        "target": "LIMIT_TARGET_WORKFLOW",
        "maxRunning": 1,
    },
    ("CreateLimit", "node_id"): {"name": "x", "target": "LIMIT_TARGET_NODE", "maxRunning": 1},
    ("CreateLimit", "owner_id"): {"name": "x", "target": "LIMIT_TARGET_TENANT", "maxRunning": 1},
    ("CheckWorkflow", "workflow_id"): {"definition": {"nodes": [{"id": "a", "nodeId": "{own}"}]}},
    ("RenderWorkflow", "definition.nodes.node_id"): _GRAPH,
    ("CreateSchedule", "workflow_id"): {"definition": _SCHEDULE},
    ("UpdateSchedule", "schedule_id"): {"definition": {"name": "x"}, "updateMask": "name"},
    ("CreateEventSubscription", "workflow_id"): _SUBSCRIPTION,
    ("UpdateEventSubscription", "subscription_id"): {"name": "x", "updateMask": "name"},
    ("UpdateEventSubscription", "workflow_id"): {
        "subscriptionId": "{subscription}",
        "updateMask": "workflowId",
    },
    ("CreateTrigger", "workflow_id"): {"name": "t"},
    ("UpdateTrigger", "trigger_id"): {"name": "x", "updateMask": "name"},
    ("PauseNode", "execution_id"): {"node": "a"},
    ("ResumeNode", "execution_id"): {"node": "a"},
    ("SkipNode", "execution_id"): {"node": "a"},
    ("SendSignal", "execution_id"): {"name": "go"},
    ("QueryMetrics", "execution_id"): {"metricName": "a"},
    ("QueryMetrics", "workflow_id"): {"metricName": "a"},
    ("RecordMetrics", "series.execution_id"): {
        "series": [{"metricName": "m", "points": [{"metricValue": 1}]}]
    },
    ("AnswerApproval", "execution_id"): {"name": "ok"},
    ("GrantSecret", "node_id"): {"name": "X"},
    ("RevokeSecret", "node_id"): {"name": "X"},
    ("UpdateTeam", "team_id"): {"name": "x"},
    ("InviteTeamMember", "team_id"): {"email": "a@example.org", "role": "ROLE_USER"},
    ("UpdateTeamMember", "team_id"): {"userId": "{own}", "role": "ROLE_USER"},
    ("RemoveTeamMember", "team_id"): {"userId": "{own}"},
    ("UpdateTeamMember", "user_id"): {"teamId": "{team}", "role": "ROLE_USER"},
    ("RemoveTeamMember", "user_id"): {"teamId": "{team}"},
    ("TransferNode", "node_id"): {"targetTenantId": "{own}"},
    ("TransferNode", "target_tenant_id"): {"nodeId": "{node}"},
    ("TransferWorkflow", "workflow_id"): {"targetTenantId": "{own}"},
    ("TransferWorkflow", "target_tenant_id"): {"workflowId": "{own}"},
    ("BackfillSchedule", "schedule_id"): {
        "startTime": "2026-01-01T00:00:00Z",
        "endTime": "2026-01-02T00:00:00Z",
    },
}
_CODES = {
    auth_pb2.FOREIGN_ANSWER_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    auth_pb2.FOREIGN_ANSWER_EMPTY: grpc.StatusCode.OK,
    auth_pb2.FOREIGN_ANSWER_INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    auth_pb2.FOREIGN_ANSWER_FINDING: grpc.StatusCode.OK,
}


async def test_a_foreign_id_is_answered_as_the_rule_says_and_like_a_missing_one(
    suite: Suite,
) -> None:
    """X14: byte for byte, of every id in every request."""
    with suite.sql() as sql:
        foreign = _things(sql, factories.user(sql))
        caller = factories.user(sql)
        subscription = _things(sql, caller)["event_subscription"]
        team = factories.team(sql, admin=caller)
    async with suite.channel("registry", token=caller.token) as channel:
        client = Client(channel, channel)
        node = await client.create_node("own", "def one() -> int:\n    return 1\n")
        own = (await client.create_workflow("own", [Step("a", node)], [])).id
    asked = [
        (rpc, resource)
        for rpc in await every_rpc(suite)
        for resource in rpc.rule.resources
        # To an administrator no user is a stranger: what only they may call is tested by itself.
        if auth_pb2.AUDIENCE_USER in rpc.rule.audiences and auth_pb2.ROLE_USER in rpc.rule.roles
    ]
    kinds = {"node", "workflow", "execution", "file", "tag", "custom_type"}
    kinds |= {"user", "session", "service_token", "schedule", "schedule_backfill"}
    kinds |= {"event_subscription", "event_delivery", "trigger", "upload", "environment", "wheel"}
    kinds |= {"team", "team_invitation"}
    assert kinds == {each.kind for _, each in asked}
    known = {"{own}": own, "{node}": node.id, "{subscription}": subscription, "{team}": str(team)}
    for rpc, resource in asked:
        answer = resource.foreign_answer or rpc.rule.foreign_answer
        told = [
            await _told(rpc, resource.field, each, own=known, token=caller.token)
            for each in (foreign[resource.kind], str(uuid.uuid4()))
        ]
        assert told[0] == told[1], f"{rpc.path} {resource.field}"
        code, raw = told[0]
        assert _CODES[answer] == code, f"{rpc.path} {resource.field}: {raw!r}"
        if answer == auth_pb2.FOREIGN_ANSWER_EMPTY:
            assert raw == b"", rpc.path
        if answer == auth_pb2.FOREIGN_ANSWER_FINDING:
            # Each item of a batch has a status of its own.
            missing = f"{resource.kind.upper()}_NOT_FOUND".encode()
            assert missing in raw or b"nodes[0].node_id" in raw, rpc.path


def _things(sql: psycopg.Connection, owner: factories.User) -> dict[str, str]:
    """One of each kind that requests name, of a user's."""
    node = factories.node(sql, owner)
    edges = [("", "x", "a", "x")]
    workflow = factories.workflow(sql, owner, nodes={"a": node}, edges=edges, outputs=[("y", "a")])
    execution, file = uuid.uuid4(), uuid.uuid4()
    sql.execute(
        "INSERT INTO workflow_executions (id, workflow_id, workflow_version, status, tenant_id,"
        " created_by, completed_at) VALUES (%s, %s, 1, 'cancelled', %s, %s, now())",
        (execution, workflow, owner.id, owner.id),
    )
    sql.execute(
        "INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes, tenant_id,"
        " created_by) VALUES (%s, 'a', 'a', %s, 0, %s, %s)",
        (file, f"{owner.id}/{file}", owner.id, owner.id),
    )
    upload = uuid.uuid4()
    sql.execute(
        "INSERT INTO file_uploads (id, filename, mime_type, file_size_bytes, tenant_id, created_by,"
        " expires_at) VALUES (%s, 'a', 'a/b', 0, %s, %s, 'tomorrow')",
        (upload, owner.id, owner.id),
    )
    tag = uuid.uuid4()
    sql.execute(
        "INSERT INTO python_node_tags (id, name, tenant_id, created_by) VALUES (%s, 't', %s, %s)",
        (tag, owner.id, owner.id),
    )
    [(session,)] = sql.execute("SELECT id FROM user_sessions WHERE user_id = %s", (owner.id,))
    [(service_token,)] = sql.execute(
        "INSERT INTO user_service_tokens (tenant_id, user_id, name, token_sha256, scopes,"
        " expires_at) VALUES (%s, %s, 'a', %s, '{nodes:read}', 'tomorrow') RETURNING id",
        (owner.id, owner.id, token_sha256(owner.token)),
    )
    found = {"node": node.id, "workflow": workflow, "execution": execution, "file": file}
    found["upload"] = upload
    found["custom_type"] = uuid.uuid4()
    sql.execute(
        "INSERT INTO custom_types (id, name, definition, tenant_id, created_by)"
        " VALUES (%s, 'T', %s, %s, %s)",
        (found["custom_type"], '{"kind":"fields","fields":[]}', owner.id, owner.id),
    )
    schedule, backfill = uuid.uuid4(), uuid.uuid4()
    sql.execute(
        "INSERT INTO schedules (id, workflow_id, name, timing, overlap, catch_up,"
        " catch_up_window_ms, tenant_id, created_by)"
        " VALUES (%s, %s, 'a', '{}', 'skip', 'last', 1, %s, %s)",
        (schedule, workflow, owner.id, owner.id),
    )
    sql.execute(
        "INSERT INTO schedule_backfills (id, schedule_id, timing, from_at, to_at, state,"
        " completed_at, max_running, total_count, tenant_id, created_by) VALUES"
        " (%s, %s, '{}', 'yesterday', 'today', 'completed', now(), 1, 1, %s, %s)",
        (backfill, schedule, owner.id, owner.id),
    )
    subscription, delivery, trigger = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    sql.execute(
        "INSERT INTO event_subscriptions (id, name, url, event_types, key_fingerprint, tenant_id,"
        " created_by) VALUES (%s, 'a', 'https://example.com/', '{execution.failed}', 'f', %s, %s)",
        (subscription, owner.id, owner.id),
    )
    sql.execute(
        "INSERT INTO event_deliveries (id, subscription_id, event_id, event_type, body, state,"
        " tenant_id) VALUES (%s, %s, %s, 'test', '{}', 'dead', %s)",
        (delivery, subscription, delivery, owner.id),
    )
    sql.execute(
        "INSERT INTO triggers (id, workflow_id, name, secret_sha256, tenant_id, created_by)"
        " VALUES (%s, %s, 'a', %s, %s, %s)",
        (trigger, workflow, "0" * 64, owner.id, owner.id),
    )
    found["environment"], found["wheel"] = uuid.uuid4(), uuid.uuid4()
    sql.execute(
        "INSERT INTO environments (id, key, tenant_id, python_version, platform, lock_digest)"
        " VALUES (%s, %s, %s, '3.11', 'p', 'd')",
        (found["environment"], str(found["environment"]), owner.id),
    )
    sql.execute(
        "INSERT INTO tenant_wheels (id, filename, name, version, size_bytes, sha256, tenant_id,"
        " created_by) VALUES (%s, 'a-1-py3-none-any.whl', 'a', '1', 1, %s, %s, %s)",
        (found["wheel"], "0" * 64, owner.id, owner.id),
    )
    found["team"], found["team_invitation"] = factories.team(sql, admin=owner), uuid.uuid4()
    sql.execute(
        "INSERT INTO tenant_invitations (id, tenant_id, email, role, created_by, expires_at)"
        " VALUES (%s, %s, 'a@example.org', 'user', %s, 'tomorrow')",
        (found["team_invitation"], found["team"], owner.id),
    )
    found |= {"event_subscription": subscription, "event_delivery": delivery, "trigger": trigger}
    found |= {"schedule": schedule, "schedule_backfill": backfill}
    found |= {"tag": tag, "user": owner.id, "session": session, "service_token": service_token}
    return {kind: str(each) for kind, each in found.items()}


async def _told(
    rpc: Rpc, field: str, each: str, *, own: dict[str, str], token: str
) -> tuple[grpc.StatusCode, bytes]:
    """What a caller is told of an id, with the id taken out."""
    full_name, name = rpc.path.strip("/").split("/")
    package, _, service = full_name.rpartition(".")
    module = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", service).lower()
    request = getattr(importlib.import_module(f"{package}.{module}_pb2"), f"{name}Request")()
    rest = json.dumps(_REST.get((name, field), {}))
    for name_of, known in own.items():
        rest = rest.replace(name_of, known)
    json_format.Parse(rest, request)
    *path, last = field.split(".")
    target: Any = request
    for part in path:
        inner = getattr(target, part)
        target = inner if isinstance(inner, Message) else inner[0]
    if isinstance(getattr(target, last), str):
        setattr(target, last, each)
    else:
        getattr(target, last).append(each)
    async with open_channel(rpc.address, token) as channel:
        raw_request = request.SerializeToString()
        asked: Any = [raw_request] if rpc.kind.startswith("stream") else raw_request
        call = getattr(channel, rpc.kind)(rpc.path)(asked, timeout=20)
        try:
            raw = await (call if rpc.kind.endswith("unary") else call.read())
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code, raw = error.code(), b""
            for key, value in error.trailing_metadata() or ():
                if key == "grpc-status-details-bin" and isinstance(value, bytes):
                    raw = value
    return code, raw.replace(each.encode(), b"<id>")


async def test_health_is_told_to_anybody(suite: Suite) -> None:
    for name, address in listeners(suite).items():
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            service = "" if name == "attach" else f"qflow.{name}"
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert health_pb2.HealthCheckResponse.SERVING == answer.status
