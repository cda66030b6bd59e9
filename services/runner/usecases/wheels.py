"""Wheels uploaded by tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import (
    AlreadyExists,
    DataLoss,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.runner.domain.wheels import WheelError, WheelFacts, wheel_facts
from services.runner.gateways.wheel_store import Upload, WheelRefusedError, WheelStore
from services.runner.storage import wheels
from services.runner.storage.wheels import StoredWheel
from services.runner.usecases.full_disk import disk_refuses

_WHEELS_MAX: Final = 1_000
_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What an upload declares before its bytes."""

    filename: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelLimits:
    """Size limits: of one wheel, and of all of a tenant's."""

    bytes_max: int
    tenant_bytes_max: int


class Wheels:
    """Stores wheels: rows under row-level security, bytes in the store."""

    def __init__(self, pool: Pool, store: WheelStore, limits: WheelLimits) -> None:
        self._pool = pool
        self._store = store
        self._limits = limits
        self._taking = asyncio.Semaphore(_AT_ONCE)

    async def take(
        self, caller: Caller, announced: Announced, chunks: AsyncIterator[bytes]
    ) -> StoredWheel:
        """Store a wheel once it is verified; the contract lists what is refused."""
        if announced.size_bytes > self._limits.bytes_max:
            raise _too_large(f"a wheel may have {self._limits.bytes_max} bytes")
        async with as_caller(self._pool, caller) as db:
            found = await self._known(db, announced)
            if found is not None:
                return found
            await self._check_quota(db, announced.size_bytes)
        async with self._taking:
            upload = await asyncio.to_thread(self._store.upload, caller.tenant_id)
            try:
                await _receive(upload, announced, chunks)
                facts = await self._facts(upload, announced.filename)
                wheel_id = uuid7()
                await asyncio.to_thread(upload.keep, wheel_id)
            finally:
                await asyncio.to_thread(upload.close)
        # If it is unknown whether the insert was committed, the bytes stay; without a row they are
        # swept later.
        stored = await self._insert(caller, wheel_id, facts, announced)
        if stored.id != wheel_id:
            await asyncio.to_thread(self._store.remove, caller.tenant_id, wheel_id)
        return stored

    async def get(self, caller: Caller, wheel_id: UUID) -> StoredWheel:
        """Return a wheel of the caller's tenant; raises NotFound."""
        async with as_caller(self._pool, caller) as db:
            found = await wheels.get(db, wheel_id)
        if found is None:
            raise _missing(wheel_id)
        return found

    async def list(
        self, caller: Caller, *, after: tuple[datetime, UUID] | None, limit: int
    ) -> list[StoredWheel]:
        """Return a page of the wheels of the caller's tenant, newest first."""
        async with as_caller(self._pool, caller) as db:
            return await wheels.list_page(db, after=after, limit=limit)

    async def delete(
        self, caller: Caller, wheel_id: UUID, key: RequestKey[UUID] | None
    ) -> UUID | Replayed:
        """Delete a wheel: first its row, then its bytes."""

        async def write(db: Db) -> UUID:
            if not await wheels.delete(db, wheel_id):
                raise _missing(wheel_id)
            return wheel_id

        done = await do_once(self._pool, caller, key, write)
        if not isinstance(done, Replayed):
            await asyncio.to_thread(self._store.remove, caller.tenant_id, wheel_id)
        return done

    async def _facts(self, upload: Upload, filename: str) -> WheelFacts:
        try:
            texts = await self._store.read(upload.path)
            return wheel_facts(
                filename, folder=texts.folder, metadata=texts.metadata, wheel=texts.wheel
            )
        except (WheelRefusedError, WheelError) as problem:
            raise InvalidArgument(
                "WHEEL_INVALID",
                f"the wheel is refused: {problem}",
                fields=[FieldViolation("chunk", str(problem), "WHEEL_INVALID")],
            ) from None

    async def _insert(
        self, caller: Caller, wheel_id: UUID, facts: WheelFacts, announced: Announced
    ) -> StoredWheel:
        async with as_caller(self._pool, caller) as db:
            await wheels.lock_tenant(db, caller.tenant_id)
            found = await self._known(db, announced)
            if found is not None:
                return found
            await self._check_quota(db, announced.size_bytes)
            return await wheels.insert(
                db, wheel_id, facts, size_bytes=announced.size_bytes, sha256=announced.sha256
            )

    async def _known(self, db: Db, announced: Announced) -> StoredWheel | None:
        found = await wheels.by_filename(db, announced.filename)
        if found is not None and found.sha256 != announced.sha256:
            raise AlreadyExists(
                "WHEEL_EXISTS",
                f"a different file exists with the name {announced.filename}; a new version of a "
                "wheel has a new version in its name",
                resource=("wheel", str(found.id)),
            )
        return found

    async def _check_quota(self, db: Db, size_bytes: int) -> None:
        number, bytes_before = await wheels.sum_up(db)
        if number >= _WHEELS_MAX:
            raise ResourceExhausted(
                "WHEELS_TOO_MANY", f"a tenant may have {_WHEELS_MAX} wheels", scope="tenant"
            )
        if bytes_before + size_bytes > self._limits.tenant_bytes_max:
            raise _too_large(
                f"all wheels of a tenant may have {self._limits.tenant_bytes_max} bytes"
            )


async def _receive(upload: Upload, announced: Announced, chunks: AsyncIterator[bytes]) -> None:
    async for chunk in chunks:
        if upload.size_bytes + len(chunk) > announced.size_bytes:
            raise _damaged("more bytes came than were announced")
        try:
            await asyncio.to_thread(upload.add, chunk)
        except OSError as problem:
            raise disk_refuses(f"{problem.strerror}", retry_after_s=60.0) from None
    if upload.size_bytes != announced.size_bytes:
        raise _damaged("fewer bytes came than were announced")
    if upload.sha256() != announced.sha256:
        raise _damaged("the bytes are not those that were announced")


def _damaged(message: str) -> DataLoss:
    return DataLoss("DIGEST_MISMATCH", f"{message}; send them again")


def _too_large(message: str) -> ResourceExhausted:
    return ResourceExhausted("WHEELS_TOO_LARGE", message, scope="tenant")


def _missing(wheel_id: UUID) -> NotFound:
    return NotFound("WHEEL_NOT_FOUND", "there is no such wheel", resource=("wheel", str(wheel_id)))
