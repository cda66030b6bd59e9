"""WheelService: a tenant's own wheels."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import grpc
from qflow.runner.v1 import wheel_service_pb2 as pb
from qflow.runner.v1.wheel_service_pb2_grpc import WheelServiceServicer

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.runner.storage.wheels import StoredWheel
from services.runner.usecases.wheels import Announced, Wheels

Context = grpc.aio.ServicerContext[Any, Any]


class WheelServicer(WheelServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, wheels: Wheels) -> None:
        self._wheels = wheels

    async def UploadWheel(
        self, request_iterator: AsyncIterator[pb.UploadWheelRequest], context: Context
    ) -> pb.UploadWheelResponse:
        """Store a wheel."""
        parts = aiter(request_iterator)
        first = await anext(parts, None)
        if first is None or first.WhichOneof("part") != "header":
            raise codec.invalid("header", "must come first")
        announced = Announced(
            filename=first.header.filename,
            size_bytes=first.header.size_bytes,
            sha256=first.header.sha256,
        )
        stored = await self._wheels.take(current_caller(), announced, _chunks(parts))
        return pb.UploadWheelResponse(wheel=_wheel(stored))

    async def GetWheel(self, request: pb.GetWheelRequest, context: Context) -> pb.GetWheelResponse:
        """Return a wheel."""
        wheel_id = codec.uuid_from(request.wheel_id, field="wheel_id")
        found = await self._wheels.get(current_caller(), wheel_id)
        return pb.GetWheelResponse(wheel=_wheel(found))

    async def ListWheels(
        self, request: pb.ListWheelsRequest, context: Context
    ) -> pb.ListWheelsResponse:
        """Return a page of wheels."""
        pages = Pages("runner.ListWheels", request)
        found = await self._wheels.list(
            current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=_wheel, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListWheelsResponse(wheels=shown, next_page_token=token)

    async def DeleteWheel(
        self, request: pb.DeleteWheelRequest, context: Context
    ) -> pb.DeleteWheelResponse:
        """Delete a wheel."""
        done = await self._wheels.delete(
            current_caller(),
            codec.uuid_from(request.wheel_id, field="wheel_id"),
            request_key(request, "runner.DeleteWheel", _deleted),
        )
        return answered(pb.DeleteWheelResponse, done, _deleted)


async def _chunks(parts: AsyncIterator[pb.UploadWheelRequest]) -> AsyncIterator[bytes]:
    async for part in parts:
        if part.WhichOneof("part") != "chunk":
            raise codec.invalid("chunk", "must be all frames after the header")
        yield part.chunk


def _deleted(_: UUID) -> pb.DeleteWheelResponse:
    return pb.DeleteWheelResponse()


def _wheel(wheel: StoredWheel) -> pb.Wheel:
    return pb.Wheel(
        id=str(wheel.id),
        filename=wheel.filename,
        name=wheel.name,
        version=wheel.version,
        summary=wheel.summary,
        requires_python=wheel.requires_python,
        requirements=wheel.requirements,
        size_bytes=wheel.size_bytes,
        sha256=wheel.sha256,
        created_by=str(wheel.created_by),
        create_time=codec.timestamp(wheel.created_at),
    )
