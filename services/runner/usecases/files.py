"""Reading files, and removing the bytes of those whose rows are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import DataLoss, NotFound, OutOfRange
from services.kit.pg import Pool, as_caller
from services.runner.gateways.file_store import FileCorruptError, FileStore
from services.runner.storage import files
from services.runner.storage.files import DeletedFile, StoredFile

log = structlog.get_logger()

_REMOVED_AT_ONCE: Final = 500


async def open_file(
    pool: Pool, store: FileStore, caller: Caller, file_id: UUID, *, offset: int
) -> StoredFile:
    """Find a file that the caller may read and prove its bytes before any of them is sent.

    NotFound where row-level security hides it, OutOfRange past its end, DataLoss when it changed.
    """
    async with as_caller(pool, caller) as db:
        found = await files.get(db, file_id)
        if found is None:
            raise NotFound(
                "FILE_NOT_FOUND", "there is no such file", resource=("file", str(file_id))
            )
        if not 0 <= offset <= found.size_bytes:
            raise OutOfRange(
                "OFFSET_OUT_OF_RANGE",
                f"offset_bytes {offset} lies outside of the file's {found.size_bytes} bytes",
                size_bytes=found.size_bytes,
            )
        await files.log_read(db, file_id, caller.user_id)
    try:
        await asyncio.to_thread(
            store.check, found.key, size_bytes=found.size_bytes, sha256=found.sha256
        )
    except FileCorruptError as problem:
        log.exception("file_corrupt", file_id=str(file_id))
        raise DataLoss("FILE_CORRUPT", str(problem), file_id=file_id) from None
    return found


def pieces_of(
    store: FileStore, found: StoredFile, *, offset: int, limit: int, piece_bytes: int
) -> Iterator[bytes]:
    """Give a range of a file that was opened; `limit` 0 is to the end."""
    return store.pieces(
        found.key, offset=offset, limit=limit or found.size_bytes, piece_bytes=piece_bytes
    )


async def remove_deleted(pool: Pool, store: FileStore) -> int:
    """Remove the bytes of deleted files, then mark them; a crash between only repeats it."""
    waiting = await files.deleted(pool, _REMOVED_AT_ONCE)
    if waiting:
        await asyncio.to_thread(_remove_all, store, waiting)
        await files.removed(pool, [each.event_id for each in waiting])
    return len(waiting)


def _remove_all(store: FileStore, waiting: list[DeletedFile]) -> None:
    for each in waiting:
        try:
            store.remove(tenant_id=each.tenant_id, file_id=each.file_id)
        except OSError:
            log.warning("file_not_removed", file_id=str(each.file_id))
