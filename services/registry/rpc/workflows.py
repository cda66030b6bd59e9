"""WorkflowService."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as pb
from qflow.registry.v1 import workflow_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.recent import Loaded
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.registry.rpc.fresh import Answers, kept
from services.registry.rpc.listing import listed
from services.registry.rpc.sizes import check_answerable
from services.registry.rpc.workflow_codec import (
    definition_from_pb,
    definition_to_pb,
    findings_to_pb,
    workflow_to_pb,
    workflow_version_to_pb,
)
from services.registry.storage.workflows import Workflow
from services.registry.usecases import deletion, lists, reading, workflow_versions, workflows
from services.registry.usecases.reading import Reading
from services.registry.usecases.workflows import WorkflowAnswer, Workflows

_GET: Final = "registry.GetWorkflow"
_LIST: Final = "registry.ListWorkflows"
_LIST_VERSIONS: Final = "registry.ListWorkflowVersions"


class WorkflowServicer(pb_grpc.WorkflowServiceServicer):
    """Serves workflows, and the checks of their definitions."""

    def __init__(self, deps: Workflows, reading: Reading, answers: Answers) -> None:
        self._deps = deps
        self._reading = reading
        self._answers = answers

    async def CreateWorkflow(
        self, request: pb.CreateWorkflowRequest, context: Any
    ) -> pb.CreateWorkflowResponse:
        """See the contract."""
        answer = await workflows.create_workflow(
            self._deps,
            current_caller(),
            name=request.name,
            description=request.description,
            definition=definition_from_pb(request.definition),
            activate=request.activate,
            key=request_key(request, "registry.CreateWorkflow", _created),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        return answered(pb.CreateWorkflowResponse, answer, _created)

    async def GetWorkflow(
        self, request: pb.GetWorkflowRequest, context: Any
    ) -> pb.GetWorkflowResponse:
        """See the contract."""
        caller = current_caller()
        with_graph = request.view != workflow_pb2.WORKFLOW_VIEW_BASIC

        async def load() -> Loaded[pb.GetWorkflowResponse]:
            workflow_id = codec.uuid_from(request.workflow_id, field="workflow_id")
            workflow = await reading.get_workflow(
                self._reading, caller, workflow_id, version=request.version, with_graph=with_graph
            )
            shown = workflow_to_pb(workflow, with_graph=with_graph)
            return kept(pb.GetWorkflowResponse(workflow=shown))

        key = (_GET, request.workflow_id, request.version, with_graph)
        answer: pb.GetWorkflowResponse = await self._answers.get(caller.tenant_id, key, load)
        return answer

    async def ListWorkflows(
        self, request: pb.ListWorkflowsRequest, context: Any
    ) -> pb.ListWorkflowsResponse:
        """See the contract."""
        with_graph = request.view == workflow_pb2.WORKFLOW_VIEW_FULL
        shown, token = await listed(
            self._deps,
            request,
            _LIST,
            lists.WORKFLOWS,
            full=with_graph,
            read=partial(
                workflows.read_workflows,
                self._deps.pool,
                current_caller(),
                with_graph=with_graph,
                with_deleted=request.show_deleted,
            ),
            encode=partial(workflow_to_pb, with_graph=with_graph),
        )
        return pb.ListWorkflowsResponse(workflows=shown, next_page_token=token)

    async def UpdateWorkflow(
        self, request: pb.UpdateWorkflowRequest, context: Any
    ) -> pb.UpdateWorkflowResponse:
        """See the contract."""
        definition = None
        if request.HasField("definition"):
            definition = definition_from_pb(request.definition)
        answer = await workflows.update_workflow(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            name=request.name,
            description=request.description,
            definition=definition,
            is_template=request.is_template,
            mask=list(request.update_mask.paths),
            etag=request.etag,
            key=request_key(request, "registry.UpdateWorkflow", _updated),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        return answered(pb.UpdateWorkflowResponse, answer, _updated)

    async def ActivateWorkflow(
        self, request: pb.ActivateWorkflowRequest, context: Any
    ) -> pb.ActivateWorkflowResponse:
        """See the contract."""
        answer = await workflows.set_active(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            active=True,
            etag=request.etag,
            key=request_key(request, "registry.ActivateWorkflow", _activated),
        )
        return answered(pb.ActivateWorkflowResponse, answer, _activated)

    async def DeactivateWorkflow(
        self, request: pb.DeactivateWorkflowRequest, context: Any
    ) -> pb.DeactivateWorkflowResponse:
        """See the contract."""
        answer = await workflows.set_active(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            active=False,
            etag=request.etag,
            key=request_key(request, "registry.DeactivateWorkflow", _deactivated),
        )
        return answered(pb.DeactivateWorkflowResponse, answer, _deactivated)

    async def CheckWorkflow(
        self, request: pb.CheckWorkflowRequest, context: Any
    ) -> pb.CheckWorkflowResponse:
        """See the contract."""
        checked = await workflows.check_workflow(
            self._deps,
            current_caller(),
            definition_from_pb(request.definition),
            codec.uuid_or_none(request.workflow_id, field="workflow_id"),
        )
        return pb.CheckWorkflowResponse(
            definition=definition_to_pb(checked.definition),
            findings=findings_to_pb(checked.findings),
            storable=checked.storable,
            activatable=checked.activatable,
        )

    async def ListWorkflowVersions(
        self, request: pb.ListWorkflowVersionsRequest, context: Any
    ) -> pb.ListWorkflowVersionsResponse:
        """See the contract."""
        pages = Pages(_LIST_VERSIONS, request, request.workflow_id, request.view)
        with_graph = request.view == workflow_pb2.WORKFLOW_VIEW_FULL
        found = await workflow_versions.list_workflow_versions(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            before=pages.after_place(),
            limit=pages.limit,
            with_graph=with_graph,
        )
        shown, token = await pages.cut(
            found,
            encode=lambda version: workflow_version_to_pb(version, with_graph=with_graph),
            key=lambda version: (version.shown.version,),
        )
        return pb.ListWorkflowVersionsResponse(versions=shown, next_page_token=token)

    async def RollbackWorkflow(
        self, request: pb.RollbackWorkflowRequest, context: Any
    ) -> pb.RollbackWorkflowResponse:
        """See the contract."""
        answer = await workflow_versions.rollback_workflow(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            version=request.version,
            etag=request.etag,
            key=request_key(request, "registry.RollbackWorkflow", _rolled_back),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        return answered(pb.RollbackWorkflowResponse, answer, _rolled_back)

    async def CloneWorkflow(
        self, request: pb.CloneWorkflowRequest, context: Any
    ) -> pb.CloneWorkflowResponse:
        """See the contract."""
        answer = await workflow_versions.clone_workflow(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            version=request.version,
            name=request.name,
            key=request_key(request, "registry.CloneWorkflow", _cloned),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        return answered(pb.CloneWorkflowResponse, answer, _cloned)

    async def DeleteWorkflow(
        self, request: pb.DeleteWorkflowRequest, context: Any
    ) -> pb.DeleteWorkflowResponse:
        """See the contract."""
        answer = await deletion.mark_workflow(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            deleted=True,
            etag=request.etag,
            key=request_key(request, "registry.DeleteWorkflow", _deleted),
        )
        return answered(pb.DeleteWorkflowResponse, answer, _deleted)

    async def UndeleteWorkflow(
        self, request: pb.UndeleteWorkflowRequest, context: Any
    ) -> pb.UndeleteWorkflowResponse:
        """See the contract."""
        answer = await deletion.mark_workflow(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            deleted=False,
            etag=request.etag,
            key=request_key(request, "registry.UndeleteWorkflow", _undeleted),
        )
        return answered(pb.UndeleteWorkflowResponse, answer, _undeleted)


def _answerable(answer: WorkflowAnswer) -> None:
    # A small graph may be large once the types of its nodes are filled in.
    hint = "use shorter ids, fewer edges or smaller literals"
    check_answerable(_workflow(answer), what="definition", hint=hint)


def _created(answer: WorkflowAnswer) -> pb.CreateWorkflowResponse:
    return pb.CreateWorkflowResponse(workflow=_workflow(answer))


def _updated(answer: WorkflowAnswer) -> pb.UpdateWorkflowResponse:
    return pb.UpdateWorkflowResponse(workflow=_workflow(answer))


def _activated(answer: WorkflowAnswer) -> pb.ActivateWorkflowResponse:
    return pb.ActivateWorkflowResponse(workflow=_workflow(answer))


def _deactivated(answer: WorkflowAnswer) -> pb.DeactivateWorkflowResponse:
    return pb.DeactivateWorkflowResponse(workflow=_workflow(answer))


def _rolled_back(answer: WorkflowAnswer) -> pb.RollbackWorkflowResponse:
    return pb.RollbackWorkflowResponse(workflow=_workflow(answer))


def _cloned(answer: WorkflowAnswer) -> pb.CloneWorkflowResponse:
    return pb.CloneWorkflowResponse(workflow=_workflow(answer))


def _deleted(workflow: Workflow) -> pb.DeleteWorkflowResponse:
    return pb.DeleteWorkflowResponse(workflow=workflow_to_pb(workflow, with_graph=False))


def _undeleted(workflow: Workflow) -> pb.UndeleteWorkflowResponse:
    return pb.UndeleteWorkflowResponse(workflow=workflow_to_pb(workflow, with_graph=False))


def _workflow(answer: WorkflowAnswer) -> workflow_pb2.Workflow:
    return workflow_to_pb(answer.workflow, answer.findings)
