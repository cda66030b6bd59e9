"""Reads and deletes files, and removes bytes whose rows are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final
from uuid import UUID

import structlog

from services.kit import crash
from services.kit.caller import Caller
from services.kit.errors import DataLoss, FailedPrecondition, NotFound, OutOfRange
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.pg import Db, Pool, as_caller
from services.runner.gateways.file_port import FileBytes, FileCorruptError
from services.runner.storage import files, uploads
from services.runner.storage.files import DeletedFile, StoredFile

log = structlog.get_logger()

_REMOVED_AT_ONCE: Final = 500


async def open_file(
    pool: Pool, store: FileBytes, caller: Caller, file_id: UUID, *, offset: int
) -> StoredFile:
    """Find a file that the caller may read, and verify all its bytes before any of them is sent.

    NotFound if row-level security hides it, OutOfRange past its end, DataLoss if it was damaged.
    """
    async with as_caller(pool, caller) as db:
        found = await files.get(db, file_id)
        if found is None:
            raise _missing(file_id)
        if not 0 <= offset <= found.size_bytes:
            raise OutOfRange(
                "OFFSET_OUT_OF_RANGE",
                f"offset_bytes {offset} lies outside of the file's {found.size_bytes} bytes",
                size_bytes=found.size_bytes,
            )
        await files.log_access(db, file_id, "read", caller.user_id)
    try:
        await asyncio.to_thread(
            store.check, found.key, size_bytes=found.size_bytes, sha256=found.sha256
        )
    except FileCorruptError as problem:
        log.exception("file_corrupt", file_id=str(file_id))
        raise DataLoss("FILE_CORRUPT", str(problem), file_id=file_id) from None
    return found


def pieces_of(
    store: FileBytes, found: StoredFile, *, offset: int, limit: int, piece_bytes: int
) -> Iterator[bytes]:
    """Yield a range of a file that was opened; `limit` 0 means to the end."""
    return store.pieces(
        found.key, offset=offset, limit=limit or found.size_bytes, piece_bytes=piece_bytes
    )


async def get_file(pool: Pool, caller: Caller, file_id: UUID) -> StoredFile:
    """Return the row of a file that the caller may read; raises NotFound."""
    async with as_caller(pool, caller) as db:
        found = await files.get(db, file_id)
    if found is None:
        raise _missing(file_id)
    return found


async def delete_file(
    pool: Pool, caller: Caller, file_id: UUID, *, key: RequestKey[None] | None
) -> Replayed | None:
    """Delete a file that was uploaded; FailedPrecondition for one that a run produced."""

    async def write(db: Db) -> None:
        found = await files.get(db, file_id)
        if found is None:
            raise _missing(file_id)
        if found.execution_id is not None:
            raise FailedPrecondition(
                "FILE_OF_EXECUTION",
                "a run produced this file; it is deleted with its run",
                execution_id=found.execution_id,
            )
        await files.log_access(db, file_id, "delete", caller.user_id)
        if not await files.delete(db, file_id):
            raise _missing(file_id)

    answer = await do_once(pool, caller, key, write)
    if answer is None:
        log.info("file_deleted", file_id=str(file_id))
    return answer


def _missing(file_id: UUID) -> NotFound:
    return NotFound("FILE_NOT_FOUND", "there is no such file", resource=("file", str(file_id)))


async def anything_to_sweep(pool: Pool) -> bool:
    """Return whether uploads expired or deleted files left bytes, in a single query."""
    return await uploads.anything_to_sweep(pool)


async def give_up_expired(pool: Pool) -> int:
    """Delete expired uploads, and return how many; their bytes are removed like deleted files'."""
    return await uploads.delete_expired(pool, _REMOVED_AT_ONCE)


async def remove_deleted(pool: Pool, store: FileBytes) -> int:
    """Remove the bytes of deleted files, then mark them done; after a crash it is repeated."""
    waiting = await files.deleted(pool, _REMOVED_AT_ONCE)
    if waiting:
        crash.reach("deleted_bytes_found")
        await asyncio.to_thread(_remove_all, store, waiting)
        crash.reach("deleted_bytes_removed")
        await files.removed(pool, [each.event_id for each in waiting])
    return len(waiting)


async def remove_unknown(pool: Pool, store: FileBytes, *, before_s: float) -> int:
    """Remove files without rows, and return how many: their process was killed before the insert.

    Only files older than `before_s`: the row of a recent attempt may still be inserted.
    """
    found = await asyncio.to_thread(lambda: list(store.written_before(before_s)))
    removed = 0
    for begin in range(0, len(found), _REMOVED_AT_ONCE):
        part = found[begin : begin + _REMOVED_AT_ONCE]
        unknown = await files.unknown(pool, [file_id for _, file_id in part])
        for tenant_id, file_id in part:
            if file_id in unknown:
                await asyncio.to_thread(store.remove, tenant_id=tenant_id, file_id=file_id)
                removed += 1
    if removed:
        log.warning("files_without_row_removed", count=removed)
    return removed


def _remove_all(store: FileBytes, waiting: list[DeletedFile]) -> None:
    for each in waiting:
        try:
            store.remove(tenant_id=each.tenant_id, file_id=each.file_id)
        except OSError:
            log.warning("file_not_removed", file_id=str(each.file_id))
