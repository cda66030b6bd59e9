"""TemplateService."""

from __future__ import annotations

from typing import Any

from qflow.registry.v1 import template_service_pb2 as pb
from qflow.registry.v1 import template_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.request_key import answered, request_key
from services.registry.rpc.sizes import check_answerable
from services.registry.rpc.workflow_codec import workflow_to_pb
from services.registry.usecases.templates import create_from_template
from services.registry.usecases.workflows import WorkflowAnswer, Workflows


class TemplateServicer(pb_grpc.TemplateServiceServicer):
    """Creates workflows from templates."""

    def __init__(self, deps: Workflows) -> None:
        self._deps = deps

    async def CreateWorkflowFromTemplate(
        self, request: pb.CreateWorkflowFromTemplateRequest, context: Any
    ) -> pb.CreateWorkflowFromTemplateResponse:
        """See the contract."""
        answer = await create_from_template(
            self._deps,
            current_caller(),
            codec.uuid_from(request.template_id, field="template_id"),
            request.version,
            request.arguments_json,
            name=request.name,
            description=request.description,
            activate=request.activate,
            key=request_key(request, "registry.CreateWorkflowFromTemplate", _made),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        return answered(pb.CreateWorkflowFromTemplateResponse, answer, _made)


def _answerable(answer: WorkflowAnswer) -> None:
    check_answerable(_made(answer), what="definition", hint="fill in smaller values")


def _made(answer: WorkflowAnswer) -> pb.CreateWorkflowFromTemplateResponse:
    return pb.CreateWorkflowFromTemplateResponse(
        workflow=workflow_to_pb(answer.workflow, answer.findings)
    )
