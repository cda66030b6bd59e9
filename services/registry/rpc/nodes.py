"""NodeService."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

from qflow.registry.v1 import node_pb2
from qflow.registry.v1 import node_service_pb2 as pb
from qflow.registry.v1 import node_service_pb2_grpc as pb_grpc

from services.kit import page
from services.kit.caller import current_caller
from services.kit.recent import Loaded
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages, moment_from
from services.kit.rpc.request_key import answered, request_key
from services.registry.gateways.graph_checker import GraphChecker
from services.registry.rpc.builtin_nodes import builtin_node
from services.registry.rpc.fresh import Answers, kept
from services.registry.rpc.impact_codec import analysis_to_pb
from services.registry.rpc.listing import listed
from services.registry.rpc.node_codec import node_to_pb, node_version_to_pb
from services.registry.rpc.sizes import check_answerable
from services.registry.storage.nodes import Node
from services.registry.usecases import deletion, impact, lists, node_versions, nodes, reading
from services.registry.usecases.node_source import Draft
from services.registry.usecases.nodes import NodeAnswer, Nodes
from services.registry.usecases.reading import Reading

_GET: Final = "registry.GetNode"
# Final lock states: a cached response cannot become stale through the resolver.
_LASTING: Final = frozenset({"none", "locked"})
_LIST: Final = "registry.ListNodes"
_LIST_VERSIONS: Final = "registry.ListNodeVersions"
_ANALYZE: Final = "registry.AnalyzeNodeChange"
# A small page, since each workflow may be a graph of 10,000 nodes that is checked twice.
_ANALYZED_DEFAULT: Final = 20
_ANALYZED_MAX: Final = 50


class NodeServicer(pb_grpc.NodeServiceServicer):
    """Serves Python nodes and the analysis of their changes."""

    def __init__(
        self, deps: Nodes, reading: Reading, answers: Answers, checker: GraphChecker
    ) -> None:
        self._deps = deps
        self._reading = reading
        self._answers = answers
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
        return answered(pb.CreateNodeResponse, answer, _created)

    async def GetNode(self, request: pb.GetNodeRequest, context: Any) -> pb.GetNodeResponse:
        """See the contract."""
        caller = current_caller()
        with_code = request.view != node_pb2.NODE_VIEW_BASIC

        async def load() -> Loaded[pb.GetNodeResponse]:
            node_id = codec.uuid_from(request.node_id, field="node_id")
            builtin = builtin_node(node_id, request.version)
            if builtin is not None:
                return kept(pb.GetNodeResponse(node=builtin), lasting=True)
            node = await reading.get_node(
                self._reading, caller, node_id, version=request.version, with_code=with_code
            )
            shown = pb.GetNodeResponse(node=node_to_pb(node, with_code=with_code))
            return kept(shown, lasting=node.lock_state in _LASTING)

        key = (_GET, request.node_id, request.version, with_code)
        answer: pb.GetNodeResponse = await self._answers.get(caller.tenant_id, key, load)
        return answer

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        """See the contract."""
        with_code = request.view == node_pb2.NODE_VIEW_FULL
        shown, token = await listed(
            self._deps,
            request,
            _LIST,
            lists.NODES,
            full=with_code,
            read=partial(
                nodes.read_nodes,
                self._deps.pool,
                current_caller(),
                with_code=with_code,
                with_deleted=request.show_deleted,
            ),
            encode=partial(node_to_pb, with_code=with_code),
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
        return answered(pb.UpdateNodeResponse, answer, _updated)

    async def ListNodeVersions(
        self, request: pb.ListNodeVersionsRequest, context: Any
    ) -> pb.ListNodeVersionsResponse:
        """See the contract."""
        pages = Pages(_LIST_VERSIONS, request, request.node_id, request.view)
        with_code = request.view == node_pb2.NODE_VIEW_FULL
        found = await node_versions.list_node_versions(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.node_id, field="node_id"),
            before=pages.after_place(),
            limit=pages.limit,
            with_code=with_code,
        )
        shown, token = await pages.cut(
            found,
            encode=lambda version: node_version_to_pb(version, with_code=with_code),
            key=lambda version: (version.shown.version,),
        )
        return pb.ListNodeVersionsResponse(versions=shown, next_page_token=token)

    async def RollbackNode(
        self, request: pb.RollbackNodeRequest, context: Any
    ) -> pb.RollbackNodeResponse:
        """See the contract."""
        answer = await node_versions.rollback_node(
            self._deps,
            current_caller(),
            codec.uuid_from(request.node_id, field="node_id"),
            version=request.version,
            etag=request.etag,
            key=request_key(request, "registry.RollbackNode", _rolled_back),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        return answered(pb.RollbackNodeResponse, answer, _rolled_back)

    async def CloneNode(self, request: pb.CloneNodeRequest, context: Any) -> pb.CloneNodeResponse:
        """See the contract."""
        answer = await node_versions.clone_node(
            self._deps,
            current_caller(),
            codec.uuid_from(request.node_id, field="node_id"),
            version=request.version,
            name=request.name,
            key=request_key(request, "registry.CloneNode", _cloned),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        return answered(pb.CloneNodeResponse, answer, _cloned)

    async def DeleteNode(
        self, request: pb.DeleteNodeRequest, context: Any
    ) -> pb.DeleteNodeResponse:
        """See the contract."""
        answer = await deletion.mark_node(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.node_id, field="node_id"),
            deleted=True,
            etag=request.etag,
            key=request_key(request, "registry.DeleteNode", _deleted),
        )
        return answered(pb.DeleteNodeResponse, answer, _deleted)

    async def UndeleteNode(
        self, request: pb.UndeleteNodeRequest, context: Any
    ) -> pb.UndeleteNodeResponse:
        """See the contract."""
        answer = await deletion.mark_node(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.node_id, field="node_id"),
            deleted=False,
            etag=request.etag,
            key=request_key(request, "registry.UndeleteNode", _undeleted),
        )
        return answered(pb.UndeleteNodeResponse, answer, _undeleted)

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
    draft = Draft(
        name=request.name,
        description=request.description,
        code=request.code,
        main_function=request.main_function,
        python_version=request.python_version,
    )
    if isinstance(request, pb.CreateNodeRequest):
        return draft
    return replace(draft, is_public=request.is_public, is_template=request.is_template)


def _answerable(answer: NodeAnswer) -> None:
    hint = "use plainer types, fewer parameters or less source"
    check_answerable(node_to_pb(answer.node, answer.diagnostics), what="node", hint=hint)


def _created(answer: NodeAnswer) -> pb.CreateNodeResponse:
    return pb.CreateNodeResponse(node=node_to_pb(answer.node, answer.diagnostics))


def _updated(answer: NodeAnswer) -> pb.UpdateNodeResponse:
    return pb.UpdateNodeResponse(node=node_to_pb(answer.node, answer.diagnostics))


def _rolled_back(answer: NodeAnswer) -> pb.RollbackNodeResponse:
    return pb.RollbackNodeResponse(node=node_to_pb(answer.node, answer.diagnostics))


def _cloned(answer: NodeAnswer) -> pb.CloneNodeResponse:
    return pb.CloneNodeResponse(node=node_to_pb(answer.node, answer.diagnostics))


def _deleted(node: Node) -> pb.DeleteNodeResponse:
    return pb.DeleteNodeResponse(node=node_to_pb(node, with_code=False))


def _undeleted(node: Node) -> pb.UndeleteNodeResponse:
    return pb.UndeleteNodeResponse(node=node_to_pb(node, with_code=False))
