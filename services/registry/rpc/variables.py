"""VariableService."""

from __future__ import annotations

from typing import Any

from qflow.registry.v1 import variable_service_pb2 as pb
from qflow.registry.v1 import variable_service_pb2_grpc as pb_grpc
from qflow.types import expression, to_text

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.registry.storage.variables import Variable
from services.registry.usecases import variables
from services.registry.usecases.variables import Given


class VariableServicer(pb_grpc.VariableServiceServicer):
    """Serves the variables of tenants and workflows."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def SetVariable(
        self, request: pb.SetVariableRequest, context: Any
    ) -> pb.SetVariableResponse:
        """See the contract."""
        answer = await variables.set_variable(
            self._pool,
            current_caller(),
            codec.uuid_or_none(request.workflow_id, field="workflow_id"),
            Given(
                name=request.name,
                type_json=request.type_json,
                value_json=request.value_json,
                description=request.description,
            ),
            etag=request.etag,
            key=request_key(request, "registry.SetVariable", _was_set),
            validate_only=request.validate_only,
        )
        return answered(pb.SetVariableResponse, answer, _was_set)

    async def GetVariable(
        self, request: pb.GetVariableRequest, context: Any
    ) -> pb.GetVariableResponse:
        """See the contract."""
        workflow_id = codec.uuid_or_none(request.workflow_id, field="workflow_id")
        found = await variables.get_variable(
            self._pool, current_caller(), workflow_id, request.name
        )
        return pb.GetVariableResponse(variable=_variable(found))

    async def ListVariables(
        self, request: pb.ListVariablesRequest, context: Any
    ) -> pb.ListVariablesResponse:
        """See the contract."""
        workflow_id = codec.uuid_or_none(request.workflow_id, field="workflow_id")
        pages = Pages("registry.ListVariables", request, workflow_id)
        found = await variables.list_variables(
            self._pool,
            current_caller(),
            workflow_id,
            after=pages.after_moment(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found, encode=_variable, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListVariablesResponse(variables=shown, next_page_token=token)

    async def DeleteVariable(
        self, request: pb.DeleteVariableRequest, context: Any
    ) -> pb.DeleteVariableResponse:
        """See the contract."""
        await variables.delete_variable(
            self._pool,
            current_caller(),
            codec.uuid_or_none(request.workflow_id, field="workflow_id"),
            request.name,
            etag=request.etag,
            key=request_key(request, "registry.DeleteVariable", _deleted),
        )
        return pb.DeleteVariableResponse()


def _was_set(variable: Variable) -> pb.SetVariableResponse:
    return pb.SetVariableResponse(variable=_variable(variable))


def _deleted(_variable: Variable) -> pb.DeleteVariableResponse:
    return pb.DeleteVariableResponse()


def _variable(variable: Variable) -> pb.Variable:
    exists = variable.id.int != 0
    return pb.Variable(
        workflow_id=str(variable.workflow_id or ""),
        name=variable.name,
        type_json=to_text(variable.type),
        type_expression=expression(variable.type),
        value_json=variable.value_json,
        description=variable.description,
        etag=variable.etag if exists else "",
        created_by=str(variable.created_by),
        create_time=codec.timestamp(variable.created_at) if exists else None,
        updated_by=str(variable.updated_by),
        update_time=codec.timestamp(variable.updated_at) if exists else None,
    )
