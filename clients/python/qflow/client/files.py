"""Files: resumable uploads, and downloads with a digest check."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from qflow.client.connection import Connection
from qflow.client.patience import Patience
from qflow.errors import InternalError, UnavailableError
from qflow.exceptions import LocalFileError, QflowError
from qflow.runner.v1 import (
    file_service_pb2,
    file_service_pb2_grpc,
    upload_service_pb2,
    upload_service_pb2_grpc,
)

_CHUNK_BYTES: Final = 256 * 1024

Progress = Callable[[int, int], None]


class DigestError(QflowError):
    """The received bytes do not match the digest."""


class Files:
    """The files of the caller's tenant."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._address = connection.context.runner
        self._files = connection.stub("runner", file_service_pb2_grpc.FileServiceStub)
        self._uploads = connection.stub("runner", upload_service_pb2_grpc.UploadServiceStub)

    async def upload(
        self, path: Path | str, *, mime_type: str = "", progress: Progress | None = None
    ) -> file_service_pb2.File:
        """Upload a file in constant memory; resumes after a broken connection.

        `progress` is called with the bytes uploaded so far and in total.
        """
        path = Path(path)
        if not path.is_file():  # devices and pipes have no size in advance
            there = "is no ordinary file" if path.exists() else "is not there"
            raise LocalFileError(f"{path} {there}; nothing was sent")
        size_bytes = path.stat().st_size
        digest = await asyncio.to_thread(_sha256, path)
        created = await self._connection.call(
            self._uploads.CreateUpload,
            upload_service_pb2.CreateUploadRequest(
                filename=path.name,
                mime_type=mime_type,
                size_bytes=size_bytes,
                sha256=digest,
                request_id=str(uuid.uuid4()),
            ),
            address=self._address,
        )
        upload_id = created.upload.id
        await self._send(path, upload_id, size_bytes, progress)
        finished = await self._connection.call(
            self._uploads.FinishUpload,
            upload_service_pb2.FinishUploadRequest(
                upload_id=upload_id, sha256=digest, request_id=str(uuid.uuid4())
            ),
            timeout_s=600,
            address=self._address,
        )
        file: file_service_pb2.File = finished.file
        return file

    async def _send(
        self, path: Path, upload_id: str, size_bytes: int, progress: Progress | None
    ) -> None:
        """Send all parts; after a broken connection, from where the service got to."""
        asked = upload_service_pb2.GetUploadRequest(upload_id=upload_id)
        arrived, patience, is_cut = 0, Patience(), False
        while True:
            try:
                if is_cut:
                    there = await self._connection.call(
                        self._uploads.GetUpload, asked, address=self._address
                    )
                    if there.upload.received_bytes > arrived:
                        patience = Patience()
                    arrived = there.upload.received_bytes
                await self._write(path, upload_id, arrived, size_bytes, progress)
                return
            except (UnavailableError, InternalError) as error:
                # INTERNAL without a reason comes from grpc itself, if the server ended the call
                # while a part was being sent; the next attempt gets the server's own error.
                if isinstance(error, InternalError) and error.reason:
                    raise
                is_cut = True
                await patience.wait(error)

    async def _write(
        self, path: Path, upload_id: str, offset: int, size_bytes: int, progress: Progress | None
    ) -> int:
        if size_bytes == 0:
            return 0

        async def parts() -> AsyncIterator[upload_service_pb2.WriteUploadRequest]:
            sent = offset
            with path.open("rb") as stream:
                stream.seek(offset)
                first = True
                while chunk := await asyncio.to_thread(stream.read, _CHUNK_BYTES):
                    part = upload_service_pb2.WriteUploadRequest(chunk=chunk)
                    if first:
                        part.upload_id, part.offset_bytes, first = upload_id, offset, False
                    yield part
                    sent += len(chunk)
                    if progress is not None:
                        progress(sent, size_bytes)

        answer = await self._connection.call(
            self._uploads.WriteUpload, parts(), timeout_s=24 * 3600, address=self._address
        )
        received: int = answer.received_bytes
        return received

    async def download(
        self, file_id: str, path: Path | str, *, progress: Progress | None = None
    ) -> file_service_pb2.File:
        """Download a file to a path; it is complete and verified there, or absent."""
        path = Path(path)
        # In the same folder, for an atomic rename; short, so that the name is never too long.
        half = path.with_name(f".qflow-{uuid.uuid4().hex[:12]}")
        try:
            with half.open("xb") as stream:
                file = await self._fetch(file_id, stream.write, progress)
                stream.flush()
                os.fsync(stream.fileno())
            half.replace(path)
        except OSError as error:
            raise _unwritten(path, error) from None
        finally:
            half.unlink(missing_ok=True)
        return file

    async def read(self, file_id: str) -> bytes:
        """Return the verified bytes of a file."""
        parts: list[bytes] = []
        await self._fetch(file_id, parts.append, None)
        return b"".join(parts)

    async def _fetch(
        self, file_id: str, write: Callable[[bytes], object], progress: Progress | None
    ) -> file_service_pb2.File:
        file: file_service_pb2.File | None = None
        digest = hashlib.sha256()
        arrived = 0
        patience = Patience()
        while file is None or arrived < file.size_bytes:
            request = file_service_pb2.DownloadFileRequest(file_id=file_id, offset_bytes=arrived)
            try:
                async for part in self._connection.stream(
                    self._files.DownloadFile, request, address=self._address
                ):
                    if part.HasField("file"):
                        file = part.file
                        continue
                    write(part.chunk)
                    digest.update(part.chunk)
                    arrived += len(part.chunk)
                    patience = Patience()
                    if progress is not None and file is not None:
                        progress(arrived, file.size_bytes)
            except UnavailableError as error:
                await patience.wait(error)
                continue
            if file is None or arrived < file.size_bytes:
                raise DigestError(f"the file {file_id} ended after {arrived} bytes")
        if digest.hexdigest() != file.sha256:
            raise DigestError(f"the file {file_id} arrived with another digest: fetch it again")
        return file

    async def about(self, file_id: str) -> file_service_pb2.File:
        """Return the metadata of a file."""
        request = file_service_pb2.GetFileRequest(file_id=file_id)
        answer = await self._connection.call(self._files.GetFile, request, address=self._address)
        file: file_service_pb2.File = answer.file
        return file

    async def list(
        self, *, execution_id: str = "", uploaded_only: bool = False
    ) -> AsyncIterator[file_service_pb2.File]:
        """Yield the metadata of files."""
        request = file_service_pb2.ListFilesRequest(
            page_size=200, execution_id=execution_id, uploaded_only=uploaded_only
        )
        pages = self._connection.pages(
            self._files.ListFiles, request, "files", address=self._address
        )
        async for each in pages:
            yield each

    async def delete(self, file_id: str) -> None:
        """Delete an uploaded file."""
        request = file_service_pb2.DeleteFileRequest(file_id=file_id, request_id=str(uuid.uuid4()))
        await self._connection.call(self._files.DeleteFile, request, address=self._address)


def _unwritten(path: Path, error: OSError) -> LocalFileError:
    """Return the error for a file that could not be written."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            why = "there is no room left on that disk. Make some, or say another place"
        case errno.ENOENT | errno.ENOTDIR:
            why = f"there is no folder {path.parent}. Make it, or say another place"
        case errno.EISDIR:
            why = "that is a folder. Say the file's name as well"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            why = f"nothing may be written to {path.parent}. Say another place"
        case errno.ENAMETOOLONG:
            why = "that name is too long. Say a shorter one"
        case _:
            why = error.strerror or str(error)
    return LocalFileError(f"{path} was not written: {why}")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
