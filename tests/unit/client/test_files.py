"""What the client makes of an upload that was ended in the middle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from qflow.client.connection import Connection
from qflow.client.files import Files
from qflow.errors import InternalError, UnavailableError
from qflow.runner.v1 import file_service_pb2, upload_service_pb2

pytestmark = pytest.mark.asyncio

CONTENT = bytes(range(256)) * 10


class Server:
    """Takes half of an upload, ends the call in this way, and takes the rest."""

    def __init__(self, end: Exception) -> None:
        self.end: Exception | None = end
        self.received = b""

    async def call(self, method: Any, request: Any, **_options: Any) -> Any:
        return await method(request)

    def stub(self, _service: str, _stub: Any) -> Any:
        return self

    context = SimpleNamespace(runner="a")

    async def CreateUpload(self, _request: Any) -> Any:  # noqa: N802  # the RPC's name
        upload = upload_service_pb2.Upload(id="u")
        return upload_service_pb2.CreateUploadResponse(upload=upload)

    async def WriteUpload(self, parts: Any) -> Any:  # noqa: N802  # the RPC's name
        async for part in parts:
            if part.upload_id:
                assert len(self.received) == part.offset_bytes
            if self.end is not None:
                self.received += part.chunk[: len(part.chunk) // 2]
                end, self.end = self.end, None
                raise end
            self.received += part.chunk
        return upload_service_pb2.WriteUploadResponse(received_bytes=len(self.received))

    async def GetUpload(self, _request: Any) -> Any:  # noqa: N802  # the RPC's name
        upload = upload_service_pb2.Upload(id="u", received_bytes=len(self.received))
        return upload_service_pb2.GetUploadResponse(upload=upload)

    async def FinishUpload(self, request: Any) -> Any:  # noqa: N802  # the RPC's name
        assert hashlib.sha256(self.received).hexdigest() == request.sha256
        return upload_service_pb2.FinishUploadResponse(file=file_service_pb2.File(id="u"))


@pytest.mark.parametrize("end", [UnavailableError("gone"), InternalError("start_batch failed")])
async def test_an_upload_goes_on_from_what_had_arrived(end: Exception, tmp_path: Path) -> None:
    """Also where grpc could not send and never told what the server said."""
    (tmp_path / "file").write_bytes(CONTENT)
    server = Server(end)
    file = await Files(cast("Connection", server)).upload(tmp_path / "file")
    assert ("u", CONTENT) == (file.id, server.received)
