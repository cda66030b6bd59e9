"""Uploads: created, written in any number of calls, then finished or cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    Conflict,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    OutOfRange,
)
from services.kit.idempotency import Replayed, RequestKey, do_once, replay, write_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.runner.gateways.file_port import (
    FileBytes,
    FileCorruptError,
    UploadBusy,
    UploadIncomplete,
    UploadWriter,
    WrongOffset,
)
from services.runner.storage import files, uploads
from services.runner.storage.files import StoredFile
from services.runner.storage.uploads import Upload

log = structlog.get_logger()

_KEPT: Final = timedelta(days=1)
_FILE_KEPT_MAX: Final = timedelta(days=366)
_MIME_TYPE: Final = "application/octet-stream"


class Standing(NamedTuple):
    """An upload, and how many of its bytes were received."""

    upload: Upload
    received_bytes: int


async def create(
    pool: Pool,
    caller: Caller,
    *,
    filename: str,
    mime_type: str,
    size_bytes: int,
    sha256: str,
    expires_at: datetime | None,
    key: RequestKey[Standing] | None,
) -> Standing | Replayed:
    """Create an upload; the database refuses one that exceeds the tenant's quota."""
    now = datetime.now(UTC)
    if expires_at is not None and not now < expires_at <= now + _FILE_KEPT_MAX:
        fault = "must lie in the future, a year at most"
        raise InvalidArgument(
            "INVALID_FIELD",
            f"expire_time {fault}",
            fields=[FieldViolation("expire_time", fault)],
        )
    made = Upload(
        id=uuid7(),
        filename=filename,
        mime_type=mime_type or _MIME_TYPE,
        size_bytes=size_bytes,
        sha256=sha256,
        file_expires_at=expires_at,
        tenant_id=caller.tenant_id,
        created_at=now,
        expires_at=now + _KEPT,
    )

    async def write(db: Db) -> Standing:
        await uploads.insert(db, made)
        return Standing(made, 0)

    return await do_once(pool, caller, key, write)


async def get(pool: Pool, store: FileBytes, caller: Caller, upload_id: UUID) -> Standing:
    """Return an upload and how much of it was received."""
    found = await _get(pool, caller, upload_id)
    return Standing(found, await asyncio.to_thread(store.received, found.key))


async def write(
    pool: Pool,
    store: FileBytes,
    caller: Caller,
    upload_id: UUID,
    pieces: AsyncIterator[bytes],
    *,
    offset: int,
) -> int:
    """Append bytes, which are kept even if the call is cut off; return how many there are now."""
    upload = await _get(pool, caller, upload_id)
    try:
        writer = await asyncio.to_thread(
            store.append, upload.key, offset=offset, size_bytes=upload.size_bytes
        )
    except WrongOffset as wrong:
        raise OutOfRange(
            "UPLOAD_OFFSET",
            f"offset_bytes {offset} is not the upload's position: {wrong.received_bytes}",
            received_bytes=wrong.received_bytes,
        ) from None
    except UploadBusy:
        raise _busy() from None
    try:
        await _write_all(writer, upload, pieces)
    finally:
        await _close(writer)
    async with as_caller(pool, caller) as db:
        if await uploads.get(db, upload_id) is None and await files.get(db, upload_id) is None:
            # Cancelled meanwhile: its bytes may have been removed before these were written.
            await asyncio.to_thread(store.remove, tenant_id=caller.tenant_id, file_id=upload_id)
            raise _missing(upload_id)
    return writer.received_bytes


async def _write_all(writer: UploadWriter, upload: Upload, pieces: AsyncIterator[bytes]) -> None:
    async for piece in pieces:
        if writer.received_bytes + len(piece) > upload.size_bytes:
            raise InvalidArgument(
                "UPLOAD_TOO_LONG",
                f"more bytes than the {upload.size_bytes} that were announced",
                fields=[FieldViolation("chunk", "exceeds the announced size")],
            )
        if piece:
            # Never interrupted: a cancelled call must not leave a piece half written.
            await _whole(asyncio.to_thread(writer.write, piece))


async def _close(writer: UploadWriter) -> None:
    await _whole(asyncio.to_thread(writer.close))


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Run work to its end, even if the caller is cancelled meanwhile."""
    working = asyncio.ensure_future(work)
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


async def finish(
    pool: Pool,
    store: FileBytes,
    caller: Caller,
    upload_id: UUID,
    *,
    sha256: str,
    key: RequestKey[StoredFile] | None,
) -> StoredFile | Replayed:
    """Create the file: first the bytes are verified and synced, then the row is inserted."""
    replayed = await replay(pool, caller, key)
    if replayed is not None:
        return replayed
    async with as_caller(pool, caller) as db:
        upload = await uploads.get(db, upload_id)
        made = await files.get(db, upload_id) if upload is None else None
    if made is not None and sha256 in {"", made.sha256}:
        return made
    if upload is None and made is None:
        raise _missing(upload_id)
    if upload is None or (sha256 and upload.sha256 not in {"", sha256}):
        raise _mismatch()
    found = await _proven(store, upload, sha256 or upload.sha256)

    async def write_row(db: Db) -> StoredFile:
        file = await uploads.finish(db, upload_id, found) or await files.get(db, upload_id)
        if file is None:
            raise _missing(upload_id)
        await files.log_access(db, upload_id, "write", caller.user_id)
        return file

    file = await write_once(pool, caller, key, write_row)
    log.info("file_uploaded", file_id=str(upload_id), size_bytes=upload.size_bytes)
    return file


async def _proven(store: FileBytes, upload: Upload, sha256: str) -> str:
    try:
        return await asyncio.to_thread(
            store.finish, upload.key, size_bytes=upload.size_bytes, sha256=sha256
        )
    except UploadIncomplete:
        raise FailedPrecondition(
            "UPLOAD_INCOMPLETE", "bytes are missing; GetUpload shows the position"
        ) from None
    except UploadBusy:
        raise _busy() from None
    except FileCorruptError:
        raise _mismatch() from None


async def cancel(
    pool: Pool, caller: Caller, upload_id: UUID, *, key: RequestKey[None] | None
) -> Replayed | None:
    """Cancel an upload; its bytes are removed later."""

    async def write_row(db: Db) -> None:
        if not await uploads.delete(db, upload_id):
            raise _missing(upload_id)

    return await do_once(pool, caller, key, write_row)


async def _get(pool: Pool, caller: Caller, upload_id: UUID) -> Upload:
    async with as_caller(pool, caller) as db:
        found = await uploads.get(db, upload_id)
    if found is None:
        raise _missing(upload_id)
    return found


def _missing(upload_id: UUID) -> NotFound:
    return NotFound(
        "UPLOAD_NOT_FOUND",
        "there is no such upload; it may be complete or abandoned",
        resource=("upload", str(upload_id)),
    )


def _busy() -> Conflict:
    return Conflict("UPLOAD_BUSY", "another call writes to the upload; wait until it ends")


def _mismatch() -> InvalidArgument:
    fault = "is not that of the bytes"
    return InvalidArgument(
        "FILE_DIGEST_MISMATCH",
        f"sha256 {fault}; upload them again, from 0",
        fields=[FieldViolation("sha256", fault, "FILE_DIGEST_MISMATCH")],
    )
