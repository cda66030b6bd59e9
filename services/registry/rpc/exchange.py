"""ExchangeService."""

from __future__ import annotations

from typing import Any, Final

from qflow.registry.v1 import exchange_service_pb2 as pb
from qflow.registry.v1 import exchange_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.errors import FailedPrecondition, InvalidArgument
from services.kit.idempotency import Replayed
from services.kit.rpc import codec, faults
from services.kit.rpc.request_key import request_key
from services.kit.rpc.sizes import ANSWER_BYTES_MAX
from services.registry.domain.definition import Definition, Finding
from services.registry.gateways.documents import Format, Picture
from services.registry.rpc.sizes import check_answerable
from services.registry.rpc.workflow_codec import (
    definition_from_pb,
    definition_to_pb,
    findings_to_pb,
    workflow_to_pb,
)
from services.registry.usecases import exchange, pictures
from services.registry.usecases.exchange import Exchange, Imported

_MEDIA_TYPES: Final[dict[Format | Picture, str]] = {
    "yaml": "application/yaml",
    "json": "application/json",
    "mermaid": "text/vnd.mermaid",
    "svg": "image/svg+xml",
}


class ExchangeServicer(pb_grpc.ExchangeServiceServicer):
    """Serves export, import and drawing of workflows."""

    def __init__(self, deps: Exchange) -> None:
        self._deps = deps

    async def ExportWorkflow(
        self, request: pb.ExportWorkflowRequest, context: Any
    ) -> pb.ExportWorkflowResponse:
        """See the contract."""
        form: Format = "json" if request.format == pb.DOCUMENT_FORMAT_JSON else "yaml"
        text = await exchange.export_workflow(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            version=request.version,
            form=form,
            with_code=request.include_nodes,
        )
        _check_sendable(text, "EXPORT_TOO_LARGE")
        return pb.ExportWorkflowResponse(text=text, media_type=_MEDIA_TYPES[form])

    async def ImportWorkflow(
        self, request: pb.ImportWorkflowRequest, context: Any
    ) -> pb.ImportWorkflowResponse:
        """See the contract."""
        imported = await exchange.import_workflow(
            self._deps,
            current_caller(),
            request.text,
            _form(request),
            rules=_broken_rules,
            name=request.name,
            activate=request.activate,
            key=request_key(request, "registry.ImportWorkflow", _imported),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        if isinstance(imported, Replayed):
            return pb.ImportWorkflowResponse.FromString(imported.response)
        return _imported(imported)

    async def RenderWorkflow(
        self, request: pb.RenderWorkflowRequest, context: Any
    ) -> pb.RenderWorkflowResponse:
        """See the contract."""
        form: Picture = "svg" if request.format == pb.PICTURE_FORMAT_SVG else "mermaid"
        findings: tuple[Finding, ...] = ()
        if request.workflow_id:
            text = await pictures.render_workflow(
                self._deps,
                current_caller(),
                codec.uuid_from(request.workflow_id, field="workflow_id"),
                version=request.version,
                form=form,
            )
        else:
            definition = definition_from_pb(request.definition)
            text, findings = await pictures.render_definition(
                self._deps, current_caller(), definition, form=form
            )
        _check_sendable(text, "PICTURE_TOO_LARGE")
        return pb.RenderWorkflowResponse(
            text=text, media_type=_MEDIA_TYPES[form], findings=findings_to_pb(findings)
        )


def _form(request: pb.ImportWorkflowRequest) -> Format:
    if request.format == pb.DOCUMENT_FORMAT_UNSPECIFIED:
        return "json" if request.text.lstrip().startswith("{") else "yaml"
    return "json" if request.format == pb.DOCUMENT_FORMAT_JSON else "yaml"


def _broken_rules(definition: Definition) -> list[tuple[str, str, str]]:
    """Check a definition against the contract's rules for one sent as a message."""
    message = definition_to_pb(definition)
    for told, each in zip(message.inputs, definition.inputs, strict=True):
        told.type_json = each.type_text
    for parameter, written in zip(message.parameters, definition.parameters, strict=True):
        parameter.type_json = written.type_text
    try:
        faults.check_elements(message)
        found = faults.find_rule_faults(message)
    except InvalidArgument as error:
        found = [*error.fields]
    return [(each.field, each.reason, each.description) for each in found]


def _check_sendable(text: str, reason: str) -> None:
    if len(text.encode()) > ANSWER_BYTES_MAX:
        raise FailedPrecondition(
            reason, f"the text has more than {ANSWER_BYTES_MAX} bytes, the maximum of a response"
        )


def _answerable(imported: Imported) -> None:
    hint = "use shorter ids, fewer edges or smaller literals"
    check_answerable(_imported(imported), what="definition", hint=hint)


def _imported(imported: Imported) -> pb.ImportWorkflowResponse:
    return pb.ImportWorkflowResponse(
        workflow=workflow_to_pb(imported.answer.workflow, imported.answer.findings),
        nodes=[
            pb.ImportedNode(
                key=each.key,
                node_id=str(each.node_id) if each.node_id.int else "",
                version=each.version,
                created=each.created,
            )
            for each in imported.nodes
        ],
    )
