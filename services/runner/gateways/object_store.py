"""File contents in an S3-compatible object store."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from services.runner.gateways.file_port import (
    FileCorruptError,
    UploadBusy,
    UploadIncomplete,
    UploadWriter,
    WrongOffset,
)
from services.runner.gateways.file_store import Digests, pieces_of, regular_size

if TYPE_CHECKING:
    from hashlib import _Hash

    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

# Parts have at least 5 MiB, except the last, and there are at most 10,000: enough for 80 GB.
_PART_BYTES: Final = 8 * 1024 * 1024
_READ_BYTES: Final = 1024 * 1024
_MISSING: Final = frozenset({"404", "NoSuchKey", "NoSuchUpload"})
_CONFIG: Final = Config(
    connect_timeout=5,
    read_timeout=30,
    retries={"mode": "standard", "max_attempts": 4},
    # Checksums that other vendors' stores do not support are used only where they are required.
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)


class ObjectStore:
    """One bucket; an upload is a multipart upload of its object, so it has no local state.

    Credentials come from the usual places of AWS: environment, profile, or machine role.
    """

    def __init__(self, bucket: str, *, endpoint: str = "", region: str = "") -> None:
        self._bucket = bucket
        self._client: S3Client = boto3.client(
            "s3", endpoint_url=endpoint or None, region_name=region or None, config=_CONFIG
        )
        self._digests = Digests()
        self._writing = _Writing()

    def write(self, *, tenant_id: UUID, file_id: UUID, parts: Sequence[bytes]) -> tuple[int, str]:
        """Store bytes durably; return their size and SHA-256."""
        data = b"".join(parts)
        with _told():
            self._client.put_object(Bucket=self._bucket, Key=f"{tenant_id}/{file_id}", Body=data)
        return len(data), hashlib.sha256(data).hexdigest()

    def read(self, key: str, *, size_bytes: int, sha256: str) -> bytes:
        """Read a whole file and verify it; raises FileCorruptError."""
        data = b"".join(self.pieces(key, offset=0, limit=size_bytes + 1, piece_bytes=_READ_BYTES))
        if len(data) != size_bytes or hashlib.sha256(data).hexdigest() != sha256:
            raise FileCorruptError("the bytes of the file are not what was written")
        return data

    def check(self, key: str, *, size_bytes: int, sha256: str) -> None:
        """Verify a file without keeping it in memory; raises FileCorruptError."""
        if self._digest_of(key) != (size_bytes, sha256):
            raise FileCorruptError("the bytes of the file are not what was written")

    def pieces(self, key: str, *, offset: int, limit: int, piece_bytes: int) -> Iterator[bytes]:
        """Yield a range in pieces."""
        size = self._size(key)
        if size is None:
            raise FileCorruptError("the bytes of the file are missing")
        last = min(offset + limit, size) - 1
        if last < offset:
            return
        with _told():
            found = self._client.get_object(
                Bucket=self._bucket, Key=_checked(key), Range=f"bytes={offset}-{last}"
            )
            with closing(found["Body"]) as body:
                yield from body.iter_chunks(piece_bytes)

    def lend(self, key: str, place: Path, *, size_bytes: int, sha256: str) -> None:
        """Make a verified file available at a path: as a copy, verified while it is written."""
        digest = hashlib.sha256()
        size = 0
        partial = place.with_name(".partial")
        try:
            with partial.open("wb") as file:
                for piece in self.pieces(key, offset=0, limit=size_bytes, piece_bytes=_READ_BYTES):
                    file.write(piece)
                    digest.update(piece)
                    size += len(piece)
            if size != size_bytes or digest.hexdigest() != sha256:
                raise FileCorruptError("the bytes of the file are not what was written")
            partial.chmod(0o444)
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)

    def adopt(
        self, *, tenant_id: UUID, file_id: UUID, descriptor: int, bytes_max: int
    ) -> tuple[int, str]:
        """Store a copy of an open file durably; return the size and SHA-256 of the copy."""
        size = regular_size(descriptor, bytes_max)
        key = f"{tenant_id}/{file_id}"
        digest = hashlib.sha256()
        sent = 0
        writer = _ObjectWriter(self, key, offset=0, size_bytes=size, parts=None)
        try:
            for piece in pieces_of(descriptor, size):
                digest.update(piece)
                writer.write(bytes(piece))
                sent += len(piece)
        finally:
            writer.close()
        if sent != size:  # it was truncated while it was read
            self.remove(tenant_id=tenant_id, file_id=file_id)
            raise FileCorruptError("what was handed over became shorter while it was read")
        return size, self.finish(key, size_bytes=size, sha256=digest.hexdigest())

    def remove(self, *, tenant_id: UUID, file_id: UUID) -> None:
        """Remove the bytes of a file or an upload; does nothing if they are gone already."""
        key = f"{tenant_id}/{file_id}"
        with _told():
            self._client.delete_object(Bucket=self._bucket, Key=key)
            upload = self.upload_of(key)
            if upload:
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)

    def written_before(self, moment_s: float) -> Iterator[tuple[UUID, UUID]]:
        """Yield tenant and id of files last written before a time."""
        with _told():
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket):
                for each in page.get("Contents", ()):
                    tenant, _, file = each["Key"].partition("/")
                    try:
                        if each["LastModified"].timestamp() < moment_s:
                            yield UUID(tenant), UUID(file)
                    except ValueError:
                        continue  # not one of ours

    # -- uploads

    def received(self, key: str) -> int:
        """Return how many bytes of an upload are durable."""
        size = self._size(key)
        return sum(part[2] for part in self._parts(key)) if size is None else size

    def append(self, key: str, *, offset: int, size_bytes: int) -> UploadWriter:
        """Continue an upload of `size_bytes` at an offset; raises WrongOffset and UploadBusy."""
        size = self._size(key)
        if size is not None:  # complete, but without a row
            raise WrongOffset(size)
        parts = self._parts(key)
        received = sum(part[2] for part in parts)
        if received != offset:
            raise WrongOffset(received)
        return _ObjectWriter(self, key, offset=offset, size_bytes=size_bytes, parts=parts)

    def finish(self, key: str, *, size_bytes: int, sha256: str) -> str:
        """Complete the multipart upload; raises as the port says."""
        if self._writing.has(key):
            raise UploadBusy
        if self._size(key) is None:
            self._complete(key, size_bytes)
        digest = self._digests.take(key, at=size_bytes) if size_bytes else hashlib.sha256()
        found = digest.hexdigest() if digest is not None else self._digest_of(key)[1]
        if sha256 and found != sha256:
            with _told():
                self._client.delete_object(Bucket=self._bucket, Key=_checked(key))
            raise FileCorruptError("the bytes of the file are not what the digest says")
        return found

    def _complete(self, key: str, size_bytes: int) -> None:
        if size_bytes == 0:
            with _told():
                self._client.put_object(Bucket=self._bucket, Key=_checked(key), Body=b"")
            return
        parts = self._parts(key)
        if sum(part[2] for part in parts) != size_bytes:
            raise UploadIncomplete
        named: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": tag} for number, tag, _ in parts
        ]
        with _told():
            self._client.complete_multipart_upload(
                Bucket=self._bucket,
                Key=_checked(key),
                UploadId=self.upload_of(key),
                MultipartUpload={"Parts": named},
            )

    def upload_of(self, key: str, *, begin: bool = False) -> str:
        """Return the id of an object's multipart upload, begun if wanted; "" if there is none."""
        with _told():
            found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=_checked(key))
            for each in found.get("Uploads", ()):
                if each.get("Key") == key:
                    return each["UploadId"]
            if not begin:
                return ""
            return self._client.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"]

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> None:
        """Store one part; idempotent."""
        with _told():
            self._client.upload_part(
                Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=data
            )

    def _parts(self, key: str) -> list[tuple[int, str, int]]:
        """Return the stored parts in order: number, tag, size."""
        upload = self.upload_of(key)
        if not upload:
            return []
        with _told():
            pages = self._client.get_paginator("list_parts").paginate(
                Bucket=self._bucket, Key=key, UploadId=upload
            )
            return [
                (part["PartNumber"], part["ETag"], part["Size"])
                for page in pages
                for part in page.get("Parts", ())
            ]

    def _size(self, key: str) -> int | None:
        try:
            with _told():
                return self._client.head_object(Bucket=self._bucket, Key=_checked(key))[
                    "ContentLength"
                ]
        except _NotThereError:
            return None

    def _digest_of(self, key: str) -> tuple[int, str]:
        digest = hashlib.sha256()
        size = 0
        for piece in self.pieces(key, offset=0, limit=1 << 62, piece_bytes=_READ_BYTES):
            digest.update(piece)
            size += len(piece)
        return size, digest.hexdigest()


class _Writing:
    """The uploads that this process is writing to."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, key: str) -> None:
        with self._lock:
            if key in self._keys:
                raise UploadBusy
            self._keys.add(key)

    def has(self, key: str) -> bool:
        return key in self._keys

    def end(self, key: str) -> None:
        with self._lock:
            self._keys.discard(key)


class _ObjectWriter:
    """Buffers pieces into parts. Bytes short of a part when the call ends must be sent again."""

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        *,
        offset: int,
        size_bytes: int,
        parts: list[tuple[int, str, int]] | None,
    ) -> None:
        self._store = store
        self._key = key
        self._size_bytes = size_bytes
        self._number = len(parts or ())
        self._kept = offset  # durable bytes
        self._pending = bytearray()
        self._upload = ""
        store._writing.begin(key)  # noqa: SLF001 - its own writer
        self._digest: _Hash | None = store._digests.take(key, at=offset)  # noqa: SLF001

    @property
    def received_bytes(self) -> int:
        """How many bytes there are; once closed, they are durable."""
        return self._kept + len(self._pending)

    def write(self, piece: bytes) -> None:
        """Append the next bytes."""
        self._pending += piece
        while len(self._pending) >= _PART_BYTES:
            self._put(_PART_BYTES)

    def close(self) -> None:
        """Store the final part, if all bytes arrived, and let others write."""
        try:
            if self._pending and self.received_bytes == self._size_bytes:
                self._put(len(self._pending))
            self._pending.clear()
            self._store._digests.keep(self._key, self._digest, at=self._kept)  # noqa: SLF001
        finally:
            self._store._writing.end(self._key)  # noqa: SLF001

    def _put(self, count: int) -> None:
        data = bytes(self._pending[:count])
        self._upload = self._upload or self._store.upload_of(self._key, begin=True)
        self._store.put_part(self._key, self._upload, self._number + 1, data)
        if self._digest is not None:
            self._digest.update(data)
        self._number += 1
        self._kept += count
        del self._pending[:count]


class _NotThereError(FileCorruptError):
    """The object does not exist."""


@contextmanager
def _told() -> Iterator[None]:
    """Convert errors of the library into those that a disk would raise."""
    try:
        yield
    except ClientError as problem:
        answer: Any = problem.response
        if str(answer.get("Error", {}).get("Code")) in _MISSING:
            raise _NotThereError("the bytes of the file are missing") from None
        raise OSError(f"the object store: {problem}") from problem
    except BotoCoreError as problem:
        raise OSError(f"the object store cannot be reached: {problem}") from problem


def _checked(key: str) -> str:
    # The key comes from our own table, but is checked anyway: a path consists of two UUIDs only.
    tenant, _, file = key.partition("/")
    return f"{UUID(tenant)}/{UUID(file)}"
