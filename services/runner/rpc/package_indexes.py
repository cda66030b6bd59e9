"""PackageIndexService: the private package indexes of a tenant."""

from __future__ import annotations

from typing import Any

import grpc
from qflow.runner.v1 import package_index_service_pb2 as pb
from qflow.runner.v1.package_index_service_pb2_grpc import PackageIndexServiceServicer

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.request_key import answered, request_key
from services.runner.storage.package_indexes import PackageIndex
from services.runner.usecases import package_indexes
from services.runner.usecases.package_indexes import PackageIndexes

Context = grpc.aio.ServicerContext[Any, Any]


class PackageIndexServicer(PackageIndexServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, deps: PackageIndexes) -> None:
        self._deps = deps

    async def SetPackageIndex(
        self, request: pb.SetPackageIndexRequest, context: Context
    ) -> pb.SetPackageIndexResponse:
        """Create or change an index."""
        written = await package_indexes.set_index(
            self._deps,
            current_caller(),
            request.name,
            url=request.url,
            username=request.username,
            secret_name=request.secret_name,
            etag=request.etag,
            key=request_key(request, "runner.SetPackageIndex", _was_set),
        )
        return answered(pb.SetPackageIndexResponse, written, _was_set)

    async def ListPackageIndexes(
        self, request: pb.ListPackageIndexesRequest, context: Context
    ) -> pb.ListPackageIndexesResponse:
        """Return the tenant's indexes."""
        found = await package_indexes.list_indexes(self._deps, current_caller())
        return pb.ListPackageIndexesResponse(indexes=[_index(each) for each in found])

    async def DeletePackageIndex(
        self, request: pb.DeletePackageIndexRequest, context: Context
    ) -> pb.DeletePackageIndexResponse:
        """Delete an index."""
        await package_indexes.delete_index(
            self._deps,
            current_caller(),
            request.name,
            etag=request.etag,
            key=request_key(
                request, "runner.DeletePackageIndex", lambda _: pb.DeletePackageIndexResponse()
            ),
        )
        return pb.DeletePackageIndexResponse()


def _was_set(index: PackageIndex) -> pb.SetPackageIndexResponse:
    return pb.SetPackageIndexResponse(index=_index(index))


def _index(index: PackageIndex) -> pb.PackageIndex:
    return pb.PackageIndex(
        id=str(index.id),
        name=index.name,
        url=index.url,
        username=index.username,
        secret_name=index.secret_name or "",
        etag=index.etag,
        created_by=str(index.created_by),
        create_time=codec.timestamp(index.created_at),
        updated_by=str(index.updated_by),
        update_time=codec.timestamp(index.updated_at),
    )
