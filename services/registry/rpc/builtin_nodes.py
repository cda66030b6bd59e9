"""BuiltinNodeService, and the encoding of built-in nodes."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from qflow.registry.v1 import builtin_node_service_pb2 as pb
from qflow.registry.v1 import builtin_node_service_pb2_grpc as pb_grpc
from qflow.registry.v1 import node_pb2
from qflow.types import expression, to_text

from services.kit.errors import no_such
from services.registry.domain.builtins import BUILTINS, BY_ID, BuiltinNode

_KINDS: Final = {
    "choice": node_pb2.NODE_KIND_CHOICE,
    "sleep": node_pb2.NODE_KIND_SLEEP,
    "signal": node_pb2.NODE_KIND_SIGNAL,
    "approval": node_pb2.NODE_KIND_APPROVAL,
}


class BuiltinNodeServicer(pb_grpc.BuiltinNodeServiceServicer):
    """Serves descriptions of the nodes that the engine runs itself."""

    async def ListBuiltinNodes(
        self, request: pb.ListBuiltinNodesRequest, context: Any
    ) -> pb.ListBuiltinNodesResponse:
        """See the contract."""
        return pb.ListBuiltinNodesResponse(nodes=[_to_pb(each) for each in BUILTINS])


def builtin_node(node_id: UUID, version: int) -> node_pb2.Node | None:
    """Return a built-in node by its id; None if it is not one."""
    found = BY_ID.get(node_id)
    if found is None:
        return None
    if version > 1:
        fault = "the node is built in and has version 1"
        raise no_such(
            "version", version, "VERSION_NOT_FOUND", fault, resource=("node", str(node_id))
        )
    return _to_pb(found)


def _to_pb(node: BuiltinNode) -> node_pb2.Node:
    return node_pb2.Node(
        id=str(node.id),
        name=node.name,
        description=node.description,
        inputs=[
            node_pb2.Parameter(
                name=name,
                type_expression=expression(each.type),
                type_json=to_text(each.type),
                kind=node_pb2.PARAMETER_KIND_KEYWORD,
                required=each.required,
                default_json=each.default_json or "",
            )
            for name, each in node.inputs.items()
        ],
        outputs=[
            node_pb2.OutputField(name=name, type_expression=expression(of), type_json=to_text(of))
            for name, of in node.outputs.items()
        ],
        version=1,
        kind=_KINDS[node.kind],
    )
