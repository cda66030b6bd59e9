"""WorkflowAliasService."""

from __future__ import annotations

from typing import Any, Final

from qflow.registry.v1 import workflow_alias_service_pb2 as pb
from qflow.registry.v1 import workflow_alias_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.registry.storage.workflow_aliases import Alias, Change
from services.registry.usecases import workflow_aliases as aliases
from services.registry.usecases.workflow_aliases import Expected
from services.registry.usecases.workflows import Workflows

_KINDS: Final = {
    "set": pb.WORKFLOW_ALIAS_CHANGE_KIND_SET,
    "roll_back": pb.WORKFLOW_ALIAS_CHANGE_KIND_ROLL_BACK,
    "delete": pb.WORKFLOW_ALIAS_CHANGE_KIND_DELETE,
}


class WorkflowAliasServicer(pb_grpc.WorkflowAliasServiceServicer):
    """Serves the aliases of workflows and their history."""

    def __init__(self, deps: Workflows) -> None:
        self._deps = deps

    async def SetWorkflowAlias(
        self, request: pb.SetWorkflowAliasRequest, context: Any
    ) -> pb.SetWorkflowAliasResponse:
        """See the contract."""
        version = request.expected_version if request.HasField("expected_version") else None
        answer = await aliases.set_alias(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            request.alias,
            request.version,
            expected=Expected(etag=request.etag, version=version),
            key=request_key(request, "registry.SetWorkflowAlias", _was_set),
            validate_only=request.validate_only,
        )
        return answered(pb.SetWorkflowAliasResponse, answer, _was_set)

    async def RollbackWorkflowAlias(
        self, request: pb.RollbackWorkflowAliasRequest, context: Any
    ) -> pb.RollbackWorkflowAliasResponse:
        """See the contract."""
        answer = await aliases.roll_back_alias(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            request.alias,
            expected=Expected(etag=request.etag),
            key=request_key(request, "registry.RollbackWorkflowAlias", _rolled_back),
        )
        return answered(pb.RollbackWorkflowAliasResponse, answer, _rolled_back)

    async def DeleteWorkflowAlias(
        self, request: pb.DeleteWorkflowAliasRequest, context: Any
    ) -> pb.DeleteWorkflowAliasResponse:
        """See the contract."""
        await aliases.delete_alias(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            request.alias,
            expected=Expected(etag=request.etag),
            key=request_key(request, "registry.DeleteWorkflowAlias", _deleted),
        )
        return pb.DeleteWorkflowAliasResponse()

    async def GetWorkflowAlias(
        self, request: pb.GetWorkflowAliasRequest, context: Any
    ) -> pb.GetWorkflowAliasResponse:
        """See the contract."""
        workflow_id = codec.uuid_from(request.workflow_id, field="workflow_id")
        found = await aliases.get_alias(
            self._deps.pool, current_caller(), workflow_id, request.alias
        )
        return pb.GetWorkflowAliasResponse(workflow_alias=_alias(found))

    async def ListWorkflowAliases(
        self, request: pb.ListWorkflowAliasesRequest, context: Any
    ) -> pb.ListWorkflowAliasesResponse:
        """See the contract."""
        workflow_id = codec.uuid_from(request.workflow_id, field="workflow_id")
        pages = Pages("registry.ListWorkflowAliases", request, workflow_id)
        found = await aliases.list_aliases(
            self._deps.pool,
            current_caller(),
            workflow_id,
            after=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=_alias, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListWorkflowAliasesResponse(workflow_aliases=shown, next_page_token=token)

    async def ListWorkflowAliasChanges(
        self, request: pb.ListWorkflowAliasChangesRequest, context: Any
    ) -> pb.ListWorkflowAliasChangesResponse:
        """See the contract."""
        workflow_id = codec.uuid_from(request.workflow_id, field="workflow_id")
        pages = Pages("registry.ListWorkflowAliasChanges", request, workflow_id, request.alias)
        found = await aliases.list_changes(
            self._deps.pool,
            current_caller(),
            workflow_id,
            alias=request.alias or None,
            after=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=_change, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListWorkflowAliasChangesResponse(changes=shown, next_page_token=token)


def _was_set(alias: Alias) -> pb.SetWorkflowAliasResponse:
    return pb.SetWorkflowAliasResponse(workflow_alias=_alias(alias))


def _rolled_back(alias: Alias) -> pb.RollbackWorkflowAliasResponse:
    return pb.RollbackWorkflowAliasResponse(workflow_alias=_alias(alias))


def _deleted(_alias: Alias) -> pb.DeleteWorkflowAliasResponse:
    return pb.DeleteWorkflowAliasResponse()


def _alias(alias: Alias) -> pb.WorkflowAlias:
    exists = alias.change_id.int != 0
    return pb.WorkflowAlias(
        workflow_id=str(alias.workflow_id),
        alias=alias.name,
        version=alias.version,
        etag=alias.etag if exists else "",
        created_by=str(alias.created_by),
        create_time=codec.timestamp(alias.created_at) if exists else None,
        updated_by=str(alias.updated_by or ""),
        update_time=codec.timestamp(alias.updated_at) if alias.updated_at else None,
    )


def _change(change: Change) -> pb.WorkflowAliasChange:
    return pb.WorkflowAliasChange(
        alias=change.alias,
        kind=_KINDS[change.kind],
        from_version=change.from_version or 0,
        to_version=change.to_version or 0,
        created_by=str(change.created_by),
        create_time=codec.timestamp(change.created_at),
    )
