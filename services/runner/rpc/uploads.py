"""UploadService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from qflow.runner.v1 import upload_service_pb2 as pb
from qflow.runner.v1.upload_service_pb2_grpc import UploadServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc import codec
from services.kit.rpc.request_key import answered, request_key
from services.runner.gateways.file_port import FileBytes
from services.runner.rpc.files import file_to_pb
from services.runner.storage.files import StoredFile
from services.runner.usecases import uploads
from services.runner.usecases.uploads import Standing

Context = grpc.aio.ServicerContext[Any, Any]


class UploadServicer(UploadServiceServicer):
    """Receives files."""

    def __init__(self, pool: Pool, store: FileBytes) -> None:
        self._pool = pool
        self._store = store

    async def CreateUpload(
        self, request: pb.CreateUploadRequest, context: Context
    ) -> pb.CreateUploadResponse:
        """Create an upload."""
        expires_at = None
        if request.HasField("expire_time"):
            expires_at = codec.moment_from(request.expire_time, field="expire_time")
        made = await uploads.create(
            self._pool,
            current_caller(),
            filename=request.filename,
            mime_type=request.mime_type,
            size_bytes=request.size_bytes,
            sha256=request.sha256,
            expires_at=expires_at,
            key=request_key(request, "runner.CreateUpload", _created),
        )
        return answered(pb.CreateUploadResponse, made, _created)

    async def GetUpload(
        self, request: pb.GetUploadRequest, context: Context
    ) -> pb.GetUploadResponse:
        """Return an upload, and how much of it was received."""
        upload_id = codec.uuid_from(request.upload_id, field="upload_id")
        found = await uploads.get(self._pool, self._store, current_caller(), upload_id)
        return pb.GetUploadResponse(upload=_upload(found))

    async def WriteUpload(
        self, request_iterator: AsyncIterator[pb.WriteUploadRequest], context: Context
    ) -> pb.WriteUploadResponse:
        """Append bytes at the current offset."""
        first = await anext(request_iterator, pb.WriteUploadRequest())
        received = await uploads.write(
            self._pool,
            self._store,
            current_caller(),
            codec.uuid_from(first.upload_id, field="upload_id"),
            _chunks(first, request_iterator),
            offset=first.offset_bytes,
        )
        return pb.WriteUploadResponse(received_bytes=received)

    async def FinishUpload(
        self, request: pb.FinishUploadRequest, context: Context
    ) -> pb.FinishUploadResponse:
        """Turn a complete upload into a file."""
        made = await uploads.finish(
            self._pool,
            self._store,
            current_caller(),
            codec.uuid_from(request.upload_id, field="upload_id"),
            sha256=request.sha256,
            key=request_key(request, "runner.FinishUpload", _finished),
        )
        return answered(pb.FinishUploadResponse, made, _finished)

    async def CancelUpload(
        self, request: pb.CancelUploadRequest, context: Context
    ) -> pb.CancelUploadResponse:
        """Cancel an upload."""
        await uploads.cancel(
            self._pool,
            current_caller(),
            codec.uuid_from(request.upload_id, field="upload_id"),
            key=request_key(request, "runner.CancelUpload", _cancelled),
        )
        return pb.CancelUploadResponse()


async def _chunks(
    first: pb.WriteUploadRequest, rest: AsyncIterator[pb.WriteUploadRequest]
) -> AsyncIterator[bytes]:
    yield first.chunk
    async for message in rest:
        if message.upload_id and message.upload_id != first.upload_id:
            raise codec.invalid("upload_id", "one call writes to one upload")
        yield message.chunk


def _upload(standing: Standing) -> pb.Upload:
    upload = standing.upload
    return pb.Upload(
        id=str(upload.id),
        filename=upload.filename,
        size_bytes=upload.size_bytes,
        received_bytes=standing.received_bytes,
        create_time=codec.timestamp(upload.created_at),
        expire_time=codec.timestamp(upload.expires_at),
    )


def _created(made: Standing) -> pb.CreateUploadResponse:
    return pb.CreateUploadResponse(upload=_upload(made))


def _finished(file: StoredFile) -> pb.FinishUploadResponse:
    return pb.FinishUploadResponse(file=file_to_pb(file))


def _cancelled(_: None) -> pb.CancelUploadResponse:
    return pb.CancelUploadResponse()
