"""The audit history: records of changes, in one hash chain per process, sealed at every flush.

Like `idempotency_keys` its tables belong to no single service: each inserts by this code, under its
own login, into its own chains only. A seal is a digest of its records and the previous seal.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import orjson
import structlog

from services.kit.errors import Unavailable
from services.kit.loops import pause, wait_either
from services.kit.pg import LINK_FAULTS, Pool

log = structlog.get_logger()

NOTHING: Final = b"\0" * 32  # stands for the digest before the very first seal
_FLUSH_S: Final = 0.25
_SEALED_MAX: Final = 500
_WAITING_MAX: Final = 10_000
_PAUSE_MAX_S: Final = 5.0
_RETRY_S: Final = 1.0


class Record(NamedTuple):
    """One call: its caller, method, outcome and targets; JSON texts are stored verbatim.

    The order of the fields is that of the seals and of the columns.
    """

    tenant_id: UUID
    actor_id: UUID
    session_id: UUID
    method: str
    outcome: str
    reason: str
    targets: str
    before: str
    after: str
    call_id: str
    occurred_at: datetime


@dataclass(slots=True)
class Changes:
    """Values before and after a change, collected while the call runs."""

    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


_CHANGES: Final[ContextVar[Changes | None]] = ContextVar("qflow_audit_changes", default=None)


def tell_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Add values to the record of the current call; does nothing outside of calls."""
    changes = _CHANGES.get()
    if changes is not None:
        changes.before.update(before)
        changes.after.update(after)


def begin_changes() -> Changes:
    """Start to collect the changes of the current call."""
    changes = Changes()
    _CHANGES.set(changes)
    return changes


def digest_of(
    chain_id: UUID, number: int, previous: bytes, *, first_record: int, records: Sequence[Record]
) -> bytes:
    """Compute a seal over its place in the chain, the previous seal and all its records."""
    digest = hashlib.sha256(previous)
    place = [chain_id, number, first_record]
    # `default=str` because the driver's UUID class is not the standard one. Timestamps are in UTC
    # both when written and when read.
    digest.update(orjson.dumps([place, [tuple(each) for each in records]], default=str))
    return digest.digest()


class Recorder:
    """Queues the records of one process, and writes and seals them a few times a second."""

    def __init__(self, pool: Pool, service: str) -> None:
        self._pool = pool
        self._service = service
        self._waiting: list[Record] = []
        self._came = asyncio.Event()
        self._writing = asyncio.Lock()
        self._chain: _Chain | None = None

    def check_room(self) -> None:
        """Raise `Unavailable` if the queue is full, so that a further call could not be audited."""
        if len(self._waiting) >= _WAITING_MAX:
            raise Unavailable(
                "AUDIT_BEHIND",
                "the audit log cannot be written at the moment; try again",
                retry_after_s=_RETRY_S,
            )

    def add(self, record: Record) -> None:
        """Queue a record; it is written within a fraction of a second."""
        self._waiting.append(record)
        self._came.set()

    async def write_until(self, stop: asyncio.Event) -> None:
        """Write queued records until `stop` is set; retries while the database is away."""
        pause_s = _FLUSH_S
        while not stop.is_set():
            await wait_either(self._came, stop, None)
            await pause(stop, pause_s)  # later records share the seal
            try:
                await self.flush()
                pause_s = _FLUSH_S
            except (asyncpg.PostgresError, asyncpg.InterfaceError, *LINK_FAULTS) as error:
                log.warning("audit_not_written", fault=type(error).__name__)
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)

    async def close(self) -> None:
        """Flush the queue; what cannot be written is lost, and logged."""
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, *LINK_FAULTS):
            await self.flush()
            return
        log.error("audit_records_lost", records=len(self._waiting))

    async def flush(self) -> None:
        """Write and seal everything queued."""
        async with self._writing:
            while self._waiting:
                records = self._waiting[:_SEALED_MAX]
                if self._chain is None:
                    self._chain = await _open_chain(self._pool, self._service)
                self._chain = await _write(self._pool, self._chain, records)
                if self._chain is not None:
                    del self._waiting[: len(records)]
            self._came.clear()


@dataclass(frozen=True, slots=True)
class _Chain:
    id: UUID
    number: int  # of the last seal
    last_record: int
    digest: bytes
    sealed_at: datetime


# The seal at which this login's previous chain ends, so that deleting a whole chain is detected.
_LATEST: Final[LiteralString] = """
    SELECT s.chain_id, s.number, s.digest
      FROM audit_chains c
      JOIN LATERAL (SELECT chain_id, number, digest FROM audit_seals
                     WHERE chain_id = c.id ORDER BY number DESC LIMIT 1) s ON true
     WHERE c.login = current_user
     ORDER BY c.started_at DESC
     LIMIT 1
"""
_OPEN: Final[LiteralString] = """
    INSERT INTO audit_chains (id, service, follows_chain_id, follows_number)
    VALUES ($1, $2, $3, $4)
"""


async def _open_chain(pool: Pool, service: str) -> _Chain:
    chain_id = uuid4()
    async with pool.acquire() as db:
        latest = await db.fetchrow(_LATEST)
        follows = (None, None) if latest is None else (latest["chain_id"], latest["number"])
        await db.execute(_OPEN, chain_id, service, *follows)
    digest = NOTHING if latest is None else bytes(latest["digest"])
    return _Chain(chain_id, 0, 0, digest, datetime.min.replace(tzinfo=UTC))


# Only if the chain exists: a promoted standby may not have received it. If it received a part, the
# next seal shows the gap, just as it would show deleted records.
_WRITE: Final[LiteralString] = """
    WITH seal AS (
        INSERT INTO audit_seals
               (chain_id, number, first_record, last_record, previous, digest, sealed_at)
        SELECT $1, $2, $3, $4, $5, $6, $7
         WHERE EXISTS (SELECT FROM audit_chains WHERE id = $1)
     RETURNING chain_id
    )
    INSERT INTO audit_records
           (chain_id, number, tenant_id, actor_id, session_id, method, outcome, reason, targets,
            before, after, call_id, occurred_at)
    SELECT seal.chain_id, $3 + r.place - 1, r.tenant_id, r.actor_id, r.session_id, r.method,
           r.outcome, r.reason, r.targets::json, r.before::json, r.after::json, r.call_id,
           r.occurred_at
      FROM seal,
           unnest($8::uuid[], $9::uuid[], $10::uuid[], $11::text[], $12::text[], $13::text[],
                  $14::text[], $15::text[], $16::text[], $17::text[], $18::timestamptz[])
           WITH ORDINALITY AS r(tenant_id, actor_id, session_id, method, outcome, reason, targets,
                                before, after, call_id, occurred_at, place)
"""


async def _write(pool: Pool, chain: _Chain, records: Sequence[Record]) -> _Chain | None:
    """Write records and their seal atomically; return the new state of the chain.

    None if nothing was written because the chain does not exist any more: a new one must begin.
    """
    first, number = chain.last_record + 1, chain.number + 1
    digest = digest_of(chain.id, number, chain.digest, first_record=first, records=records)
    # If the clock was set back, a later seal must still not have an earlier time.
    sealed_at = max(datetime.now(UTC), chain.sealed_at)
    after = _Chain(chain.id, number, chain.last_record + len(records), digest, sealed_at)
    # Only this process appends to the chain: if the seal exists, we wrote it and the reply was
    # lost.
    with suppress(asyncpg.UniqueViolationError):
        written = await pool.execute(
            _WRITE,
            *(chain.id, number, first, after.last_record, chain.digest, digest, sealed_at),
            *zip(*records, strict=True),
        )
        if written == "INSERT 0 0":
            return None
    return after
