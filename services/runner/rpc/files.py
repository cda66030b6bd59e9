"""FileService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from qflow.runner.v1 import file_service_pb2 as pb
from qflow.runner.v1.file_service_pb2_grpc import FileServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc import codec
from services.runner.gateways.file_store import FileStore
from services.runner.usecases.files import open_file, pieces_of

Context = grpc.aio.ServicerContext[Any, Any]

_CHUNK_BYTES: Final = 128 * 1024


class FileServicer(FileServiceServicer):
    """Gives the bytes of files."""

    def __init__(self, pool: Pool, store: FileStore) -> None:
        self._pool = pool
        self._store = store

    async def DownloadFile(
        self, request: pb.DownloadFileRequest, context: Context
    ) -> AsyncIterator[pb.DownloadFileResponse]:
        """Stream a file, proven whole before its first byte is sent."""
        file_id = codec.uuid_from(request.file_id, field="file_id")
        found = await open_file(
            self._pool, self._store, current_caller(), file_id, offset=request.offset_bytes
        )
        yield pb.DownloadFileResponse(
            file=pb.File(
                id=str(found.id),
                filename=found.filename,
                size_bytes=found.size_bytes,
                mime_type=found.mime_type,
                sha256=found.sha256,
                execution_id=str(found.execution_id) if found.execution_id else "",
                create_time=codec.timestamp(found.created_at),
            )
        )
        pieces = pieces_of(
            self._store,
            found,
            offset=request.offset_bytes,
            limit=request.limit_bytes,
            piece_bytes=_CHUNK_BYTES,
        )
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield pb.DownloadFileResponse(chunk=piece)
