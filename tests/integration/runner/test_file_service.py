"""Files that callers bring, list and remove, on the running process."""

from __future__ import annotations

import asyncio
import hashlib
import random
import uuid
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from qflow.runner.v1 import file_service_pb2 as files_pb
from qflow.runner.v1 import upload_service_pb2 as pb
from qflow.runner.v1.file_service_pb2_grpc import FileServiceStub
from qflow.runner.v1.upload_service_pb2_grpc import UploadServiceStub

from services.runner.gateways.file_store import FileStore
from tests import factories
from tests.integration.orchestrator.conftest import orchestra
from tests.integration.runner.test_runner_rpcs import Served, served

__all__ = ["orchestra", "served"]

CONTENT = random.Random(1).randbytes(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Caller:
    """A user's calls."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.uploads: Any = UploadServiceStub(channel)
        self.files: Any = FileServiceStub(channel)

    async def create(self, name: str = "a.bin", size: int = len(CONTENT), **more: Any) -> pb.Upload:
        request = pb.CreateUploadRequest(filename=name, size_bytes=size, **more)
        answer = await self.uploads.CreateUpload(request, timeout=20)
        upload: pb.Upload = answer.upload
        return upload

    async def write(self, upload: pb.Upload, content: bytes, *, offset: int = 0) -> int:
        answer = await self.uploads.WriteUpload(_parts(upload.id, content, offset), timeout=20)
        received: int = answer.received_bytes
        return received

    async def finish(self, upload: pb.Upload, sha256: str = "", **more: Any) -> files_pb.File:
        request = pb.FinishUploadRequest(upload_id=upload.id, sha256=sha256, **more)
        answer = await self.uploads.FinishUpload(request, timeout=20)
        file: files_pb.File = answer.file
        return file

    async def bring(self, name: str, content: bytes, **more: Any) -> files_pb.File:
        upload = await self.create(name, len(content), **more)
        await self.write(upload, content)
        return await self.finish(upload)

    async def download(self, file_id: str) -> bytes:
        request = files_pb.DownloadFileRequest(file_id=file_id)
        return b"".join([part.chunk async for part in self.files.DownloadFile(request)])

    async def received(self, upload: pb.Upload) -> int:
        answer = await self.uploads.GetUpload(pb.GetUploadRequest(upload_id=upload.id))
        count: int = answer.upload.received_bytes
        return count


def _parts(
    upload_id: str, content: bytes, offset: int = 0, piece: int = 100_000
) -> Iterable[pb.WriteUploadRequest]:
    yield pb.WriteUploadRequest(upload_id=upload_id, offset_bytes=offset, chunk=content[:piece])
    for at in range(piece, len(content), piece):
        yield pb.WriteUploadRequest(chunk=content[at : at + piece])


@pytest.fixture
async def caller(served: Served) -> AsyncIterator[Caller]:
    async with served.channel(served.orchestra.owner.token) as channel:
        yield Caller(channel)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_an_upload_that_is_cut_goes_on_where_it_stopped(caller: Caller) -> None:
    upload = await caller.create("übung 🌍.bin", sha256=SHA256)

    async def cut() -> AsyncIterator[pb.WriteUploadRequest]:
        for part in _parts(upload.id, CONTENT[:300_000]):
            yield part
        await asyncio.Event().wait()

    call = caller.uploads.WriteUpload(cut(), timeout=20)
    async with asyncio.timeout(30):
        while await caller.received(upload) < 300_000:  # noqa: ASYNC110 - the service tells
            await asyncio.sleep(0.01)
    busy, _ = await refused(caller.write(upload, b"x", offset=300_000))
    assert grpc.StatusCode.ABORTED == busy
    call.cancel()
    incomplete: Any = grpc.StatusCode.ABORTED
    async with asyncio.timeout(30):
        while incomplete == grpc.StatusCode.ABORTED:  # until the server has heard of the cut
            incomplete, _ = await refused(caller.finish(upload))
    assert grpc.StatusCode.FAILED_PRECONDITION == incomplete
    # In one message: who still sends when it is refused may hear INTERNAL of its own side.
    wrong, _ = await refused(caller.write(upload, CONTENT[:1000]))
    assert grpc.StatusCode.OUT_OF_RANGE == wrong
    assert len(CONTENT) == await caller.write(upload, CONTENT[300_000:], offset=300_000)
    file = await caller.finish(upload, SHA256)
    assert (upload.id, "übung 🌍.bin", len(CONTENT), SHA256) == (
        file.id,
        file.filename,
        file.size_bytes,
        file.sha256,
    )
    assert file == await caller.finish(upload)
    assert CONTENT == await caller.download(file.id)


async def test_wrong_bytes_are_discarded_and_an_empty_file_is_a_file(caller: Caller) -> None:
    """B67, B68, B70."""
    upload = await caller.create(size=5)
    too_long, _ = await refused(caller.write(upload, b"123456"))
    assert grpc.StatusCode.INVALID_ARGUMENT == too_long
    assert 5 == await caller.write(upload, b"12345")
    for _ in range(2):  # with what is known of them, and read again
        mismatch, _ = await refused(caller.finish(upload, "0" * 64))
        assert grpc.StatusCode.INVALID_ARGUMENT == mismatch
        assert 0 == await caller.received(upload)
        assert 5 == await caller.write(upload, b"abcde")
    assert hashlib.sha256(b"abcde").hexdigest() == (await caller.finish(upload)).sha256
    empty = await caller.create("empty", 0)
    file = await caller.finish(empty, hashlib.sha256().hexdigest())
    assert 0 == file.size_bytes
    assert b"" == await caller.download(file.id)


async def test_a_kill_between_the_bytes_and_the_row_is_made_good_by_asking_again(
    served: Served, caller: Caller
) -> None:
    """CP11."""
    upload = await caller.create(size=3)
    await caller.write(upload, b"123")
    key = f"{served.orchestra.owner.id}/{upload.id}"
    FileStore(served.orchestra.home / "files").finish(key, size_bytes=3, sha256="")
    assert 3 == await caller.received(upload)
    file = await caller.finish(upload, hashlib.sha256(b"123").hexdigest())
    assert b"123" == await caller.download(file.id)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_gigabyte_needs_no_more_memory_than_a_kilobyte(
    served: Served, caller: Caller
) -> None:
    """Up, into a range from its middle, and down."""
    process = psutil.Process(served.pid)
    await caller.bring("small", bytes(1024))
    resting = process.memory_info().rss
    _forget_peak(served.pid)
    chunk = random.Random(2).randbytes(1 << 20)

    def parts(upload_id: str) -> Iterable[pb.WriteUploadRequest]:
        for at in range(1024):
            yield pb.WriteUploadRequest(upload_id=upload_id if at == 0 else "", chunk=chunk)

    upload = await caller.create(size=1 << 30)
    await caller.uploads.WriteUpload(parts(upload.id), timeout=200)
    request = pb.FinishUploadRequest(upload_id=upload.id)
    file = (await caller.uploads.FinishUpload(request, timeout=60)).file
    received = 0
    download = files_pb.DownloadFileRequest(file_id=file.id, offset_bytes=1 << 29)
    async for part in caller.files.DownloadFile(download, timeout=200):
        received += len(part.chunk)
    assert 1 << 29 == received
    peak = _peak_bytes(served.pid)
    assert peak - resting < 96 << 20, f"{(peak - resting) >> 20} MiB more than at rest"


def _forget_peak(pid: int) -> None:
    (Path("/proc") / str(pid) / "clear_refs").write_text("5")


def _peak_bytes(pid: int) -> int:
    status = (Path("/proc") / str(pid) / "status").read_text()
    [line] = [each for each in status.splitlines() if each.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", "..\\x", "a/../../b", "a\0b", ".", "..", "", "a\nb", "x" * 256],
)
async def test_a_name_is_no_place(name: str, caller: Caller) -> None:
    """B63, B64, X24."""
    code, _ = await refused(caller.create(name))
    assert grpc.StatusCode.INVALID_ARGUMENT == code


async def test_sizes_types_digests_and_ends_are_checked(caller: Caller) -> None:
    """B67, B72."""
    past = datetime.now(UTC) - timedelta(seconds=1)
    far = datetime.now(UTC) + timedelta(days=400)
    for wrong in (
        {"size": -1},
        {"size": (16 << 30) + 1},
        {"mime_type": "html"},
        {"sha256": "x"},
        {"expire_time": past},
        {"expire_time": far},
        {"expire_time": Timestamp(seconds=2**63 - 1)},
    ):
        code, _ = await refused(caller.create(**wrong))
        assert grpc.StatusCode.INVALID_ARGUMENT == code, wrong
    for name in ("con", "trailing.", " leading", "<script>.html"):  # names, and nothing more
        assert name == (await caller.bring(name, b"x", mime_type="text/html")).filename


async def test_what_is_over_the_quota_is_refused_and_leaves_nothing(
    served: Served, caller: Caller
) -> None:
    """B71, I21."""
    sql = served.orchestra.sql
    await caller.bring("first", b"12345")
    sql.execute("UPDATE file_usage SET bytes_max = 10")
    code, text = await refused(caller.create(size=6))
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, True) == (code, "quota" in text)
    usage = await caller.files.GetFileUsage(files_pb.GetFileUsageRequest())
    assert (5, 10, 1, 1_000_000) == (
        usage.used_bytes,
        usage.max_bytes,
        usage.used_files,
        usage.max_files,
    )
    sql.execute(
        "INSERT INTO tenant_quotas (tenant_id, stored_bytes, updated_by)"
        " SELECT tenant_id, 11, tenant_id FROM file_usage"
    )
    assert 11 == (await caller.files.GetFileUsage(files_pb.GetFileUsageRequest())).max_bytes
    with pytest.raises(grpc.aio.AioRpcError) as over:
        await caller.create(size=7)
    status, failure = status_pb2.Status(), error_details_pb2.QuotaFailure()
    status.ParseFromString(dict(over.value.trailing_metadata() or ())["grpc-status-details-bin"])
    assert any(detail.Unpack(failure) for detail in status.details)
    assert "stored_bytes is 11, and 5 of it are used" in failure.violations[0].description
    upload = await caller.create(size=5)
    await caller.write(upload, b"123")
    await caller.uploads.CancelUpload(pb.CancelUploadRequest(upload_id=upload.id))
    assert grpc.StatusCode.NOT_FOUND == (await refused(caller.write(upload, b"45", offset=3)))[0]
    assert 5 == (await caller.bring("second", b"12345")).size_bytes


async def test_files_are_listed_deleted_and_their_accesses_told(
    served: Served, caller: Caller
) -> None:
    """B66, X13, X14, X25."""
    first = await caller.bring("a one.txt", b"1")
    second = await caller.bring("b two.txt", b"2")
    expires = datetime.now(UTC) + timedelta(hours=1)
    third = await caller.bring("a three.txt", b"3", expire_time=expires)

    async def names(**asked: Any) -> list[str]:
        answer = await caller.files.ListFiles(files_pb.ListFilesRequest(**asked))
        return [each.filename for each in answer.files]

    assert ["a three.txt", "b two.txt", "a one.txt"] == await names(uploaded_only=True)
    assert ["a three.txt", "a one.txt"] == await names(filename_prefix="a ")
    assert [] == await names(execution_id=str(uuid.uuid4()))
    page = await caller.files.ListFiles(files_pb.ListFilesRequest(page_size=2))
    assert ["a one.txt"] == await names(page_size=2, page_token=page.next_page_token)
    served.orchestra.sql.execute(
        "UPDATE files SET expires_at = now() - interval '1 s' WHERE id = %s", (third.id,)
    )
    assert ["b two.txt", "a one.txt"] == await names()
    assert grpc.StatusCode.NOT_FOUND == (await refused(caller.download(third.id)))[0]
    stranger = factories.user(served.orchestra.sql)
    async with served.channel(stranger.token) as channel:
        theirs = Caller(channel)
        delete = files_pb.DeleteFileRequest(file_id=first.id)
        assert grpc.StatusCode.NOT_FOUND == (await refused(theirs.files.DeleteFile(delete)))[0]
        accesses = await theirs.files.ListFileAccesses(files_pb.ListFileAccessesRequest())
        assert [] == list(accesses.accesses)
    await caller.download(first.id)
    key = str(uuid.uuid4())
    for _ in range(2):
        await caller.files.DeleteFile(files_pb.DeleteFileRequest(file_id=first.id, request_id=key))
    assert grpc.StatusCode.NOT_FOUND == (await refused(caller.download(first.id)))[0]
    told = await caller.files.ListFileAccesses(files_pb.ListFileAccessesRequest(page_size=3))
    kinds = [files_pb.FileAccessKind.Name(each.kind)[17:] for each in told.accesses]
    assert ["DELETE", "READ", "WRITE"] == kinds
    assert {hashlib.sha256(b"1").hexdigest()} == {each.sha256 for each in told.accesses[:2]}
    assert second.id in {each.file_id for each in (await _all(caller)).accesses}
    [(waiting,)] = served.orchestra.sql.execute(
        "SELECT count(*) FROM outbox_events WHERE payload ->> 'file_id' = %s", (first.id,)
    ).fetchall()
    assert 1 == waiting


async def _all(caller: Caller) -> Any:
    return await caller.files.ListFileAccesses(files_pb.ListFileAccessesRequest())
