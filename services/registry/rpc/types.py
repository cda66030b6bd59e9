"""TypeService."""

from __future__ import annotations

from typing import Any, Final

from qflow.registry.v1 import type_service_pb2 as pb
from qflow.registry.v1 import type_service_pb2_grpc as pb_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.registry.rpc.sizes import check_answerable
from services.registry.rpc.type_codec import (
    comparison_to_pb,
    custom_type_to_pb,
    type_text_from_pb,
    types_to_pb,
    written_from_pb,
)
from services.registry.storage.custom_types import CustomType
from services.registry.usecases import custom_types, types
from services.registry.usecases.custom_types import Types

_LIST: Final = "registry.ListCustomTypes"


class TypeServicer(pb_grpc.TypeServiceServicer):
    """Serves the types of a tenant, and verdicts on pairs of types."""

    def __init__(self, deps: Types) -> None:
        self._deps = deps

    async def ListTypes(self, request: pb.ListTypesRequest, context: Any) -> pb.ListTypesResponse:
        """See the contract."""
        return types_to_pb(*await types.list_types(self._deps.pool, current_caller()))

    async def CompareTypes(
        self, request: pb.CompareTypesRequest, context: Any
    ) -> pb.CompareTypesResponse:
        """See the contract."""
        return comparison_to_pb(
            await types.compare_types(
                self._deps,
                current_caller(),
                type_text_from_pb(request.source),
                type_text_from_pb(request.target),
                conversion=request.conversion,
            )
        )

    async def CreateCustomType(
        self, request: pb.CreateCustomTypeRequest, context: Any
    ) -> pb.CreateCustomTypeResponse:
        """See the contract."""
        answer = await custom_types.create_custom_type(
            self._deps,
            current_caller(),
            name=request.name,
            description=request.description,
            written=written_from_pb(request.definition),
            key=request_key(request, "registry.CreateCustomType", _created),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        return answered(pb.CreateCustomTypeResponse, answer, _created)

    async def GetCustomType(
        self, request: pb.GetCustomTypeRequest, context: Any
    ) -> pb.GetCustomTypeResponse:
        """See the contract."""
        custom = await custom_types.get_custom_type(
            self._deps.pool,
            current_caller(),
            codec.uuid_from(request.custom_type_id, field="custom_type_id"),
        )
        return pb.GetCustomTypeResponse(custom_type=custom_type_to_pb(custom))

    async def ListCustomTypes(
        self, request: pb.ListCustomTypesRequest, context: Any
    ) -> pb.ListCustomTypesResponse:
        """See the contract."""
        pages = Pages(_LIST, request)
        found = await custom_types.list_custom_types(
            self._deps.pool, current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=custom_type_to_pb, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListCustomTypesResponse(custom_types=shown, next_page_token=token)

    async def UpdateCustomType(
        self, request: pb.UpdateCustomTypeRequest, context: Any
    ) -> pb.UpdateCustomTypeResponse:
        """See the contract."""
        written = written_from_pb(request.definition) if request.HasField("definition") else None
        answer = await custom_types.update_custom_type(
            self._deps,
            current_caller(),
            codec.uuid_from(request.custom_type_id, field="custom_type_id"),
            description=request.description if request.HasField("description") else None,
            written=written,
            etag=request.etag,
            key=request_key(request, "registry.UpdateCustomType", _updated),
            validate_only=request.validate_only,
            guard=_answerable,
        )
        return answered(pb.UpdateCustomTypeResponse, answer, _updated)

    async def DeleteCustomType(
        self, request: pb.DeleteCustomTypeRequest, context: Any
    ) -> pb.DeleteCustomTypeResponse:
        """See the contract."""
        await custom_types.delete_custom_type(
            self._deps,
            current_caller(),
            codec.uuid_from(request.custom_type_id, field="custom_type_id"),
            etag=request.etag,
            key=request_key(request, "registry.DeleteCustomType", _deleted),
        )
        return pb.DeleteCustomTypeResponse()


def _answerable(custom: CustomType) -> None:
    hint = "use plainer types or fewer fields"
    check_answerable(custom_type_to_pb(custom), what="custom_type", hint=hint)


def _created(custom: CustomType) -> pb.CreateCustomTypeResponse:
    return pb.CreateCustomTypeResponse(custom_type=custom_type_to_pb(custom))


def _updated(custom: CustomType) -> pb.UpdateCustomTypeResponse:
    return pb.UpdateCustomTypeResponse(custom_type=custom_type_to_pb(custom))


def _deleted(_: None) -> pb.DeleteCustomTypeResponse:
    return pb.DeleteCustomTypeResponse()
