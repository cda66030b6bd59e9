"""Stores nodes and workflows written in Python; idempotent, by content."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from qflow.authoring.node import Node
from qflow.authoring.workflow import Workflow
from qflow.client.connection import Connection
from qflow.client.definition import Stored, definition
from qflow.errors import AbortedError
from qflow.exceptions import AuthoringError, QflowError
from qflow.registry.v1 import (
    node_pb2,
    node_service_pb2,
    node_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    workflow_pb2,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

Found = TypeVar("Found", node_pb2.Node, workflow_pb2.Workflow)

_TRIES: Final = 3
# Including deleted ones.
_SAME_NAME_MAX: Final = 100


class Refused(QflowError):  # noqa: N818  # an established name
    """A definition was stored as a draft or not at all: `findings` have the reasons."""

    def __init__(self, name: str, findings: list[workflow_pb2.Finding]) -> None:
        said = (
            f"  {each.place}: {each.message}{f' ({each.hint})' if each.hint else ''}"
            for each in findings
        )
        super().__init__("\n".join([f"{name} cannot be started:", *said]))
        self.findings = findings


class Pusher:
    """Stores nodes and workflows; what is stored already is left alone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._address = connection.context.registry
        self._nodes = connection.stub("registry", node_service_pb2_grpc.NodeServiceStub)
        self._workflows = connection.stub("registry", workflow_service_pb2_grpc.WorkflowServiceStub)
        self._owner = ""
        self._pushed: dict[str, tuple[str, Stored]] = {}

    async def node(self, node: Node[..., Any]) -> node_pb2.Node:
        """Store a node: as a new one, as a new version of the one with its name, or not at all."""
        for attempt in range(_TRIES):
            there, deleted = await self._find_node(node.name)
            try:
                if there is None:
                    return await self._create_node(node, deleted)
                if _same_node(there, node):
                    return there
                return await self._update_node(there, node)
            except AbortedError:  # changed by somebody else meanwhile
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError("the last try returns or raises")

    async def workflow(self, workflow: Workflow[..., Any]) -> workflow_pb2.Workflow:
        """Store a workflow with its nodes and sub-workflows, and activate it.

        Raises `Refused` with the findings; nodes stored before that stay.
        """
        if not isinstance(cast("object", workflow), Workflow):  # for callers without a type checker
            name = getattr(workflow, "__name__", repr(workflow))
            raise AuthoringError(
                f"{name} is no workflow: call it in a function under @qflow.workflow"
            )
        stored: dict[int, Stored] = {}
        for place in workflow.graph.places:
            runs = place.runs
            if isinstance(runs, Node):
                stored[id(runs)] = await self._once(runs)
            elif isinstance(runs, Workflow):
                sub = await self.workflow(runs)
                stored[id(runs)] = sub.id, sub.version
        wanted = definition(workflow, lambda runs: stored[id(runs)])
        for attempt in range(_TRIES):
            there, deleted = await self._find_workflow(workflow.name)
            try:
                if there is None:
                    return await self._create_workflow(workflow, wanted, deleted)
                return await self._change_workflow(there, workflow, wanted)
            except AbortedError:
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _once(self, node: Node[..., Any]) -> Stored:
        """Store a node once, however often it is used."""
        known = self._pushed.get(node.name)
        if known is not None:
            source, stored = known
            if source != node.source:
                raise AuthoringError(
                    f"two nodes are named {node.name!r} and are not the same: each push would "
                    "replace one by the other; name one of them, @qflow.node(name=…)"
                )
            return stored
        made = await self.node(node)
        self._pushed[node.name] = node.source, (made.id, made.version)
        return made.id, made.version

    async def _create_node(self, node: Node[..., Any], deleted: int) -> node_pb2.Node:
        request = node_service_pb2.CreateNodeRequest(
            name=node.name,
            description=node.description,
            code=node.source,
            main_function=node.function.__name__,
            python_version=node.python_version,
        )
        request.request_id = _request_id(request, deleted)
        answer = await self._call(self._nodes.CreateNode, request)
        return answer.node  # type: ignore[no-any-return]  # stubs by channel are untyped

    async def _update_node(self, there: node_pb2.Node, node: Node[..., Any]) -> node_pb2.Node:
        request = node_service_pb2.UpdateNodeRequest(
            node_id=there.id,
            etag=there.etag,
            update_mask=FieldMask(paths=["code", "main_function"]),
            code=node.source,
            main_function=node.function.__name__,
        )
        if node.description:
            request.update_mask.paths.append("description")
            request.description = node.description
        if node.python_version:
            request.update_mask.paths.append("python_version")
            request.python_version = node.python_version
        request.request_id = _request_id(request)
        answer = await self._call(self._nodes.UpdateNode, request)
        return answer.node  # type: ignore[no-any-return]

    async def _create_workflow(
        self,
        workflow: Workflow[..., Any],
        wanted: workflow_pb2.WorkflowDefinition,
        deleted: int,
    ) -> workflow_pb2.Workflow:
        create = workflow_service_pb2.CreateWorkflowRequest(
            name=workflow.name,
            description=workflow.description,
            definition=wanted,
            activate=True,
        )
        create.request_id = _request_id(create, deleted)
        made = await self._call(self._workflows.CreateWorkflow, create)
        return _startable(made.workflow)

    async def _change_workflow(
        self,
        there: workflow_pb2.Workflow,
        workflow: Workflow[..., Any],
        wanted: workflow_pb2.WorkflowDefinition,
    ) -> workflow_pb2.Workflow:
        update = workflow_service_pb2.UpdateWorkflowRequest(
            workflow_id=there.id,
            etag=there.etag,
            update_mask=FieldMask(paths=["definition", "description"]),
            definition=wanted,
            description=workflow.description,
            validate_only=True,
        )
        # The registry adds defaults, types and conversions, so it decides whether this is new.
        checked = (await self._call(self._workflows.UpdateWorkflow, update)).workflow
        same = checked.definition == there.definition
        if not same or there.description != workflow.description:
            update.validate_only = False
            update.request_id = _request_id(update)
            there = (await self._call(self._workflows.UpdateWorkflow, update)).workflow
        if not there.active:
            activate = workflow_service_pb2.ActivateWorkflowRequest(
                workflow_id=there.id, etag=there.etag, request_id=str(uuid.uuid4())
            )
            if there.findings:
                return _startable(there)
            there = (await self._call(self._workflows.ActivateWorkflow, activate)).workflow
        return _startable(there)

    async def _find_node(self, name: str) -> tuple[node_pb2.Node | None, int]:
        request = node_service_pb2.ListNodesRequest(
            filter=await self._mine(name),
            page_size=_SAME_NAME_MAX,
            view=node_pb2.NODE_VIEW_FULL,
            show_deleted=True,
        )
        found: list[node_pb2.Node] = list((await self._call(self._nodes.ListNodes, request)).nodes)
        return _only(found, "node", name)

    async def _find_workflow(self, name: str) -> tuple[workflow_pb2.Workflow | None, int]:
        request = workflow_service_pb2.ListWorkflowsRequest(
            filter=await self._mine(name),
            page_size=_SAME_NAME_MAX,
            view=workflow_pb2.WORKFLOW_VIEW_FULL,
            show_deleted=True,
        )
        answer = await self._call(self._workflows.ListWorkflows, request)
        found: list[workflow_pb2.Workflow] = list(answer.workflows)
        return _only(found, "workflow", name)

    async def _mine(self, name: str) -> str:
        if not self._owner:
            stub = self._connection.stub("registry", session_service_pb2_grpc.SessionServiceStub)
            answer = await self._call(stub.GetCaller, session_service_pb2.GetCallerRequest())
            self._owner = answer.caller.user_id
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'name = "{quoted}" AND owner = "{self._owner}"'

    async def _call(self, method: Callable[..., Any], request: Any) -> Any:
        return await self._connection.call(method, request, address=self._address)


def _only(found: list[Found], what: str, name: str) -> tuple[Found | None, int]:
    """Return the existing one, if any, and how many with its name were deleted."""
    there = [each for each in found if not each.HasField("delete_time")]
    if len(there) > 1:
        raise AuthoringError(
            f"there are several {what}s named {name!r}: delete or rename all but one, or give "
            "this one another name"
        )
    return (there[0] if there else None), len(found) - len(there)


def _same_node(there: node_pb2.Node, node: Node[..., Any]) -> bool:
    return (
        there.code == node.source
        and there.main_function == node.function.__name__
        and node.python_version in ("", there.python_version)
        and node.description in ("", there.description)
    )


def _startable(workflow: workflow_pb2.Workflow) -> workflow_pb2.Workflow:
    if not workflow.active:
        raise Refused(workflow.name, list(workflow.findings))
    return workflow


def _request_id(request: Message, deleted: int = 0) -> str:
    """Return a request id derived from the content, so that a repeated push continues.

    The number of deleted ones is part of it: an old request id would return the deleted one.
    """
    content = request.SerializeToString(deterministic=True) + str(deleted).encode()
    return str(uuid.UUID(bytes=hashlib.sha256(content).digest()[:16], version=4))
