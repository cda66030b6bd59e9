"""NodeService."""

from __future__ import annotations

from typing import Any, Final

from qflow.registry.v1 import node_pb2
from qflow.registry.v1 import node_service_pb2 as pb
from qflow.registry.v1 import node_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.registry.rpc.node_codec import node_to_pb
from services.registry.rpc.request_key import request_key
from services.registry.rpc.sizes import check_answerable
from services.registry.usecases import lists, nodes
from services.registry.usecases.idempotency import Replayed
from services.registry.usecases.nodes import Draft, NodeAnswer, Nodes

_LIST: Final = "registry.ListNodes"


class NodeServicer(pb_grpc.NodeServiceServicer):
    """Stores Python functions with what their source says."""

    def __init__(self, deps: Nodes) -> None:
        self._deps = deps

    async def CreateNode(
        self, request: pb.CreateNodeRequest, context: Any
    ) -> pb.CreateNodeResponse:
        """See the contract."""
        answer = await nodes.create_node(
            self._deps,
            current_caller(),
            _draft(request),
            key=request_key(request, "registry.CreateNode", _created),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        if isinstance(answer, Replayed):
            return pb.CreateNodeResponse.FromString(answer.response)
        return _created(answer)

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.GetNodeResponse:
        """See the contract."""
        with_code = request.view != node_pb2.NODE_VIEW_BASIC
        node = await nodes.get_node(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.node_id, field="node_id"),
            version=request.version,
            with_code=with_code,
        )
        return pb.GetNodeResponse(node=node_to_pb(node, with_code=with_code))

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        """See the contract."""
        asked = lists.asked_from(lists.NODES, filter_text=request.filter, order_by=request.order_by)
        pages = Pages(_LIST, request, request.view, request.filter, request.order_by)
        caller, pool = current_caller(), self._deps.pool
        with_code = request.view == node_pb2.NODE_VIEW_FULL
        found = await lists.find(
            pool,
            self._deps.search,
            caller,
            asked,
            after=pages.after_key(asked.order.field.key_type),
            limit=pages.limit,
            full=with_code,
        )
        shown, token = await pages.cut_found(
            found,
            read=lambda ids: nodes.read_nodes(pool, caller, ids, with_code=with_code),
            encode=lambda node: node_to_pb(node, with_code=with_code),
        )
        return pb.ListNodesResponse(nodes=shown, next_page_token=token)

    async def UpdateNode(
        self, request: pb.UpdateNodeRequest, context: Any
    ) -> pb.UpdateNodeResponse:
        """See the contract."""
        answer = await nodes.update_node(
            self._deps,
            current_caller(),
            codec.uuid_from(request.node_id, field="node_id"),
            _draft(request),
            mask=list(request.update_mask.paths),
            etag=request.etag,
            key=request_key(request, "registry.UpdateNode", _updated),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        if isinstance(answer, Replayed):
            return pb.UpdateNodeResponse.FromString(answer.response)
        return _updated(answer)


def _draft(request: pb.CreateNodeRequest | pb.UpdateNodeRequest) -> Draft:
    return Draft(
        name=request.name,
        description=request.description,
        code=request.code,
        main_function=request.main_function,
        python_version=request.python_version,
    )


def _answerable(answer: NodeAnswer) -> None:
    hint = "use plainer types, fewer parameters or less source"
    check_answerable(node_to_pb(answer.node, answer.diagnostics), what="node", hint=hint)


def _created(answer: NodeAnswer) -> pb.CreateNodeResponse:
    return pb.CreateNodeResponse(node=node_to_pb(answer.node, answer.diagnostics))


def _updated(answer: NodeAnswer) -> pb.UpdateNodeResponse:
    return pb.UpdateNodeResponse(node=node_to_pb(answer.node, answer.diagnostics))
