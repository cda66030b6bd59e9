"""Read the audit history and verify that it was not altered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from services.kit.audit import digest_of
from services.kit.caller import Caller
from services.kit.pg import Pool, as_caller
from services.registry.storage import audit_history as stored
from services.registry.storage.audit_history import Asked, Kept, Place, Seal

_EXPORTED_AT_ONCE: Final = 500
# Limits the records hashed for one response, however many seals were asked for.
_RECORDS_MAX: Final = 20_000

FaultKind = Literal["digest", "link", "known_seal"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A place where the history is not as it was written."""

    chain_id: UUID
    number: int
    kind: FaultKind


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of verifying some seals, in their order."""

    seals: Sequence[Seal]
    records: int
    faults: Sequence[Fault]
    more: bool

    def latest(self) -> list[Seal]:
        """Return the last of these seals of each chain."""
        return [*{each.chain_id: each for each in self.seals}.values()]


async def list_records(
    pool: Pool, caller: Caller, asked: Asked, *, after: Place | None, limit: int
) -> Sequence[Kept]:
    """List records of all tenants, newest first."""
    async with as_caller(pool, caller) as db:
        return await stored.list_records(db, asked, after=after, limit=limit)


async def export_records(
    pool: Pool, caller: Caller, since: datetime, before: datetime
) -> AsyncIterator[Sequence[Kept]]:
    """Yield all records of a time span in batches, oldest first.

    No connection is held between two batches.
    """
    after: Place | None = None
    while True:
        async with as_caller(pool, caller) as db:
            part = await stored.export_records(
                db, since, before, after=after, limit=_EXPORTED_AT_ONCE
            )
        if not part:
            return
        yield part
        after = part[-1].place


async def verify(
    pool: Pool,
    caller: Caller,
    *,
    after: tuple[UUID, int] | None,
    limit: int,
    known: Sequence[tuple[UUID, int, bytes]],
) -> Verified:
    """Recompute the digests of the next seals, and check seals that were noted elsewhere.

    Returns at most `limit` seals, fewer once they cover `_RECORDS_MAX` records; `more` says whether
    any are left.
    """
    checked: list[Seal] = []
    faults: list[Fault] = []
    records = 0
    async with as_caller(pool, caller) as db:
        faults += [
            Fault(known[at][0], known[at][1], "known_seal")
            for at in await stored.unknown_seals(db, known)
        ]
        found = await stored.list_seals(db, after=after, limit=limit + 1)
        for seal in found[:limit]:
            if records >= _RECORDS_MAX:
                break
            under = await stored.records_under(db, seal)
            checked.append(seal)
            records += len(under)
            faults += _faults(seal, under)
            await asyncio.sleep(0)
    return Verified(checked, records, faults, more=len(checked) < len(found))


def _faults(seal: Seal, under: Sequence[Kept]) -> list[Fault]:
    found = []
    whole = [each.number for each in under] == [*range(seal.first_record, seal.last_record + 1)]
    digest = digest_of(
        seal.chain_id,
        seal.number,
        seal.previous,
        first_record=seal.first_record,
        records=[each.record for each in under],
    )
    if not whole or digest != seal.digest:
        found.append(Fault(seal.chain_id, seal.number, "digest"))
    if not seal.link_forgotten and seal.previous != seal.expected_previous:
        found.append(Fault(seal.chain_id, seal.number, "link"))
    return found
