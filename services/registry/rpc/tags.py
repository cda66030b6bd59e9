"""TagService."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from qflow.registry.v1 import tag_pb2
from qflow.registry.v1 import tag_service_pb2 as pb
from qflow.registry.v1 import tag_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.registry.domain.tags import AttachedTag
from services.registry.rpc.tag_codec import attached_to_pb, tag_to_pb
from services.registry.storage.tags import Tag
from services.registry.usecases import tags

_LIST: Final = "registry.ListTags"
_TABLES: Final = {
    tag_pb2.TAG_KIND_NODE: tags.NODE_TAGS,
    tag_pb2.TAG_KIND_WORKFLOW: tags.WORKFLOW_TAGS,
}


class TagServicer(pb_grpc.TagServiceServicer):
    """Serves the tags of a tenant and their attachments."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def CreateTag(self, request: pb.CreateTagRequest, context: Any) -> pb.CreateTagResponse:
        """See the contract."""
        kind = request.kind

        def created(tag: Tag) -> pb.CreateTagResponse:
            return pb.CreateTagResponse(tag=tag_to_pb(tag, kind))

        answer = await tags.create_tag(
            self._pool,
            current_caller(),
            _TABLES[kind],
            name=request.name,
            description=request.description,
            color=request.color,
            key=request_key(request, "registry.CreateTag", created),
            validate_only=request.validate_only,
        )
        return answered(pb.CreateTagResponse, answer, created)

    async def GetTag(self, request: pb.GetTagRequest, context: Any) -> pb.GetTagResponse:
        """See the contract."""
        tag = await tags.get_tag(
            self._pool, current_caller(), _TABLES[request.kind], _tag_id(request)
        )
        return pb.GetTagResponse(tag=tag_to_pb(tag, request.kind))

    async def ListTags(self, request: pb.ListTagsRequest, context: Any) -> pb.ListTagsResponse:
        """See the contract."""
        pages = Pages(_LIST, request, request.kind)
        found = await tags.list_tags(
            self._pool,
            current_caller(),
            _TABLES[request.kind],
            after=pages.after_name(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(
            found,
            encode=lambda tag: tag_to_pb(tag, request.kind),
            key=lambda tag: (tag.name,),
        )
        return pb.ListTagsResponse(tags=shown, next_page_token=token)

    async def UpdateTag(self, request: pb.UpdateTagRequest, context: Any) -> pb.UpdateTagResponse:
        """See the contract."""
        kind = request.kind

        def updated(tag: Tag) -> pb.UpdateTagResponse:
            return pb.UpdateTagResponse(tag=tag_to_pb(tag, kind))

        answer = await tags.update_tag(
            self._pool,
            current_caller(),
            _TABLES[kind],
            _tag_id(request),
            wanted={
                "name": request.name,
                "description": request.description,
                "color": request.color,
            },
            mask=list(request.update_mask.paths),
            key=request_key(request, "registry.UpdateTag", updated),
            validate_only=request.validate_only,
        )
        return answered(pb.UpdateTagResponse, answer, updated)

    async def DeleteTag(self, request: pb.DeleteTagRequest, context: Any) -> pb.DeleteTagResponse:
        """See the contract."""
        kind = request.kind

        def deleted(tag: Tag) -> pb.DeleteTagResponse:
            return pb.DeleteTagResponse(tag=tag_to_pb(tag, kind))

        answer = await tags.delete_tag(
            self._pool,
            current_caller(),
            _TABLES[kind],
            _tag_id(request),
            key=request_key(request, "registry.DeleteTag", deleted),
        )
        return answered(pb.DeleteTagResponse, answer, deleted)

    async def ChangeNodeTags(
        self, request: pb.ChangeNodeTagsRequest, context: Any
    ) -> pb.ChangeNodeTagsResponse:
        """See the contract."""
        answer = await tags.change_tags(
            self._pool,
            current_caller(),
            tags.NODE_TAGS,
            codec.uuid_from(request.node_id, field="node_id"),
            add=_ids(request.add_tag_ids, "add_tag_ids"),
            remove=_ids(request.remove_tag_ids, "remove_tag_ids"),
            key=request_key(request, "registry.ChangeNodeTags", _node_changed),
        )
        return answered(pb.ChangeNodeTagsResponse, answer, _node_changed)

    async def ChangeWorkflowTags(
        self, request: pb.ChangeWorkflowTagsRequest, context: Any
    ) -> pb.ChangeWorkflowTagsResponse:
        """See the contract."""
        answer = await tags.change_tags(
            self._pool,
            current_caller(),
            tags.WORKFLOW_TAGS,
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            add=_ids(request.add_tag_ids, "add_tag_ids"),
            remove=_ids(request.remove_tag_ids, "remove_tag_ids"),
            key=request_key(request, "registry.ChangeWorkflowTags", _workflow_changed),
        )
        return answered(pb.ChangeWorkflowTagsResponse, answer, _workflow_changed)


def _node_changed(attached: Sequence[AttachedTag]) -> pb.ChangeNodeTagsResponse:
    return pb.ChangeNodeTagsResponse(tags=attached_to_pb(attached))


def _workflow_changed(attached: Sequence[AttachedTag]) -> pb.ChangeWorkflowTagsResponse:
    return pb.ChangeWorkflowTagsResponse(tags=attached_to_pb(attached))


def _tag_id(request: pb.GetTagRequest | pb.UpdateTagRequest | pb.DeleteTagRequest) -> UUID:
    return codec.uuid_from(request.tag_id, field="tag_id")


def _ids(texts: Iterable[str], field: str) -> list[UUID]:
    """Decode ids, dropping duplicates."""
    read = [codec.uuid_from(text, field=f"{field}[{at}]") for at, text in enumerate(texts)]
    return list(dict.fromkeys(read))
