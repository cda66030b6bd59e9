"""FileService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from qflow.runner.v1 import file_service_pb2 as pb
from qflow.runner.v1.file_service_pb2_grpc import FileServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool, as_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import request_key
from services.runner.gateways.file_port import FileBytes
from services.runner.storage import files
from services.runner.storage.files import Access, StoredFile
from services.runner.usecases.files import delete_file, get_file, open_file, pieces_of

Context = grpc.aio.ServicerContext[Any, Any]

_CHUNK_BYTES: Final = 128 * 1024


_KINDS: Final = {
    "read": pb.FILE_ACCESS_KIND_READ,
    "write": pb.FILE_ACCESS_KIND_WRITE,
    "delete": pb.FILE_ACCESS_KIND_DELETE,
}


class FileServicer(FileServiceServicer):
    """Shows, downloads and deletes files."""

    def __init__(self, pool: Pool, store: FileBytes) -> None:
        self._pool = pool
        self._store = store

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> pb.GetFileResponse:
        """Return the metadata of a file."""
        file_id = codec.uuid_from(request.file_id, field="file_id")
        found = await get_file(self._pool, current_caller(), file_id)
        return pb.GetFileResponse(file=file_to_pb(found))

    async def ListFiles(
        self, request: pb.ListFilesRequest, context: Context
    ) -> pb.ListFilesResponse:
        """Return a page of the tenant's files."""
        asked = (request.execution_id, request.filename_prefix, request.uploaded_only)
        pages = Pages("runner.ListFiles", request, *asked)
        async with as_caller(self._pool, current_caller()) as db:
            found = await files.list_files(
                db,
                after=pages.after_moment(),
                execution_id=codec.uuid_or_none(request.execution_id, field="execution_id"),
                filename_prefix=request.filename_prefix,
                uploaded_only=request.uploaded_only,
                limit=pages.limit,
            )
        shown, token = await pages.cut(
            found, encode=file_to_pb, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListFilesResponse(files=shown, next_page_token=token)

    async def DeleteFile(
        self, request: pb.DeleteFileRequest, context: Context
    ) -> pb.DeleteFileResponse:
        """Delete a file."""
        file_id = codec.uuid_from(request.file_id, field="file_id")
        key = request_key(request, "runner.DeleteFile", _deleted)
        await delete_file(self._pool, current_caller(), file_id, key=key)
        return pb.DeleteFileResponse()

    async def ListFileAccesses(
        self, request: pb.ListFileAccessesRequest, context: Context
    ) -> pb.ListFileAccessesResponse:
        """Return a page of accesses to files."""
        pages = Pages("runner.ListFileAccesses", request, request.file_id)
        async with as_caller(self._pool, current_caller()) as db:
            found = await files.list_accesses(
                db,
                after=pages.after_moment(),
                file_id=codec.uuid_or_none(request.file_id, field="file_id"),
                limit=pages.limit,
            )
        shown, token = await pages.cut(
            found, encode=_access, key=lambda each: (each.accessed_at, each.id)
        )
        return pb.ListFileAccessesResponse(accesses=shown, next_page_token=token)

    async def GetFileUsage(
        self, request: pb.GetFileUsageRequest, context: Context
    ) -> pb.GetFileUsageResponse:
        """Return the tenant's quota of files, and how much of it is used."""
        async with as_caller(self._pool, current_caller()) as db:
            used = await files.get_usage(db)
        return pb.GetFileUsageResponse(
            used_bytes=used.bytes,
            max_bytes=used.bytes_max,
            used_files=used.files,
            max_files=used.files_max,
        )

    async def DownloadFile(
        self, request: pb.DownloadFileRequest, context: Context
    ) -> AsyncIterator[pb.DownloadFileResponse]:
        """Stream a file, verified as a whole before its first byte is sent."""
        file_id = codec.uuid_from(request.file_id, field="file_id")
        found = await open_file(
            self._pool, self._store, current_caller(), file_id, offset=request.offset_bytes
        )
        yield pb.DownloadFileResponse(file=file_to_pb(found))
        pieces = pieces_of(
            self._store,
            found,
            offset=request.offset_bytes,
            limit=request.limit_bytes,
            piece_bytes=_CHUNK_BYTES,
        )
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield pb.DownloadFileResponse(chunk=piece)


def file_to_pb(file: StoredFile) -> pb.File:
    """Encode the metadata of a file."""
    return pb.File(
        id=str(file.id),
        filename=file.filename,
        size_bytes=file.size_bytes,
        mime_type=file.mime_type,
        sha256=file.sha256,
        execution_id=str(file.execution_id) if file.execution_id else "",
        create_time=codec.timestamp(file.created_at),
        expire_time=codec.timestamp(file.expires_at),
        created_by=str(file.created_by) if file.created_by else "",
    )


def _access(access: Access) -> pb.FileAccess:
    return pb.FileAccess(
        id=str(access.id),
        file_id=str(access.file_id) if access.file_id else "",
        kind=_KINDS[access.kind],
        accessed_by=str(access.accessed_by) if access.accessed_by else "",
        access_time=codec.timestamp(access.accessed_at),
        sha256=access.sha256,
    )


def _deleted(_: None) -> pb.DeleteFileResponse:
    return pb.DeleteFileResponse()
