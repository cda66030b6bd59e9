"""NodeService."""

from __future__ import annotations

from typing import Any, Final

from qflow.registry.v1 import node_pb2
from qflow.registry.v1 import node_service_pb2 as pb
from qflow.registry.v1 import node_service_pb2_grpc as pb_grpc

from services.kit import page
from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages, moment_from
from services.registry.gateways.graph_checker import GraphChecker
from services.registry.rpc.impact_codec import analysis_to_pb
from services.registry.rpc.node_codec import node_to_pb
from services.registry.rpc.request_key import request_key
from services.registry.rpc.sizes import check_answerable
from services.registry.usecases import impact, nodes
from services.registry.usecases.idempotency import Replayed
from services.registry.usecases.nodes import Draft, NodeAnswer, Nodes

_LIST: Final = "registry.ListNodes"
_ANALYZE: Final = "registry.AnalyzeNodeChange"
# Each may be a graph of 10,000 nodes that is checked twice.
_ANALYZED_DEFAULT: Final = 20
_ANALYZED_MAX: Final = 50


class NodeServicer(pb_grpc.NodeServiceServicer):
    """Stores Python functions with what their source says."""

    def __init__(self, deps: Nodes, checker: GraphChecker) -> None:
        self._deps = deps
        self._checker = checker

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
        pages = Pages(_LIST, request, request.view)
        with_code = request.view == node_pb2.NODE_VIEW_FULL
        found = await nodes.list_nodes(
            self._deps.pool,
            current_caller(),
            after=pages.after_moment(),
            limit=pages.limit,
            with_code=with_code,
        )
        shown, token = await pages.cut(
            found,
            encode=lambda node: node_to_pb(node, with_code=with_code),
            key=lambda node: (node.created_at, node.id),
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

    async def AnalyzeNodeChange(
        self, request: pb.AnalyzeNodeChangeRequest, context: Any
    ) -> pb.AnalyzeNodeChangeResponse:
        """See the contract."""
        asked = type(request)()
        asked.CopyFrom(request)
        asked.ClearField("page_token")
        digest = page.filter_digest(asked.SerializeToString(deterministic=True))
        caller = current_caller()
        after = page.decode_token(request.page_token, _ANALYZE, digest, caller)
        analysis = await impact.analyze_node_change(
            self._deps,
            self._checker,
            caller,
            codec.uuid_from(request.node_id, field="node_id"),
            Draft(
                code=request.code,
                main_function=request.main_function,
                python_version=request.python_version,
            ),
            include_pinned=request.include_pinned,
            after=moment_from(after),
            limit=page.page_size(request.page_size, _ANALYZED_DEFAULT, _ANALYZED_MAX),
        )
        answer, last = analysis_to_pb(analysis)
        if last is not None:
            answer.next_page_token = page.encode_token(_ANALYZE, digest, caller, last)
        return answer


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
