"""The audit history as administrators read it, under the identity login, which sees all tenants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.audit import Record
from services.kit.pg import Db, Row

# The cursor of a list: a record's time, chain and number.
Place = tuple[datetime, UUID, int]


@dataclass(frozen=True, slots=True)
class Kept:
    """A record and its position in its chain."""

    chain_id: UUID
    number: int
    record: Record

    @property
    def place(self) -> Place:
        """The record's cursor in order of time."""
        return self.record.occurred_at, self.chain_id, self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Filters of a list; None matches everything."""

    actor_id: UUID | None = None
    tenant_id: UUID | None = None
    method: str | None = None
    since: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Seal:
    """A seal and the digest it must link to, None if that is missing."""

    chain_id: UUID
    number: int
    first_record: int
    last_record: int
    previous: bytes
    digest: bytes
    expected_previous: bytes | None
    link_forgotten: bool  # the predecessor was removed by retention, so the link cannot be checked


_COLUMNS: Final[LiteralString] = """
    chain_id, number, tenant_id, actor_id, session_id, method, outcome, reason, targets, before,
    after, call_id, occurred_at
"""
_LIST: Final[LiteralString] = f"""
    SELECT {_COLUMNS}
      FROM audit_records
     WHERE ($1::uuid IS NULL OR actor_id = $1)
       AND ($2::uuid IS NULL OR tenant_id = $2)
       AND ($3::text IS NULL OR method = $3)
       AND ($4::timestamptz IS NULL OR occurred_at >= $4)
       AND ($5::timestamptz IS NULL OR occurred_at < $5)
       AND ($6::timestamptz IS NULL OR (occurred_at, chain_id, number) < ($6, $7::uuid, $8::bigint))
     ORDER BY occurred_at DESC, chain_id DESC, number DESC
     LIMIT $9
"""


async def list_records(db: Db, asked: Asked, *, after: Place | None, limit: int) -> Sequence[Kept]:
    """List records, newest first."""
    rows = await db.fetch(
        _LIST,
        *(asked.actor_id, asked.tenant_id, asked.method, asked.since, asked.before),
        *(after or (None, None, None)),
        limit,
    )
    return [_to_kept(row) for row in rows]


_EXPORT: Final[LiteralString] = f"""
    SELECT {_COLUMNS}
      FROM audit_records
     WHERE occurred_at >= $1 AND occurred_at < $2
       AND ($3::timestamptz IS NULL OR (occurred_at, chain_id, number) > ($3, $4::uuid, $5::bigint))
     ORDER BY occurred_at, chain_id, number
     LIMIT $6
"""


async def export_records(
    db: Db, since: datetime, before: datetime, *, after: Place | None, limit: int
) -> Sequence[Kept]:
    """Return the next records of a time span, oldest first."""
    rows = await db.fetch(_EXPORT, since, before, *(after or (None, None, None)), limit)
    return [_to_kept(row) for row in rows]


# The expected predecessor: the previous seal, or the checkpoint that replaces it. The first seal of
# a chain links to the last seal of the chain it follows, or to nothing.
_SEALS: Final[LiteralString] = """
    SELECT s.chain_id, s.number, s.first_record, s.last_record, s.previous, s.digest,
           COALESCE(before.digest, forgotten.digest) AS expected_previous,
           s.number = 1 AND c.follows_chain_id IS NOT NULL AND EXISTS (
               SELECT 1 FROM audit_checkpoints p
                WHERE p.chain_id = c.follows_chain_id AND p.seal_number > c.follows_number
           ) AS link_forgotten,
           s.number = 1 AND c.follows_chain_id IS NULL AS begins
      FROM audit_seals s
      JOIN audit_chains c ON c.id = s.chain_id
     CROSS JOIN LATERAL (
           SELECT CASE WHEN s.number = 1 THEN c.follows_chain_id ELSE s.chain_id END AS chain_id,
                  CASE WHEN s.number = 1 THEN c.follows_number ELSE s.number - 1 END AS number
           ) link
      LEFT JOIN audit_seals before
        ON before.chain_id = link.chain_id AND before.number = link.number
      LEFT JOIN audit_checkpoints forgotten
        ON forgotten.chain_id = link.chain_id AND forgotten.seal_number = link.number
     WHERE ($1::uuid IS NULL OR (s.chain_id, s.number) > ($1, $2::bigint))
     ORDER BY s.chain_id, s.number
     LIMIT $3
"""


async def list_seals(db: Db, *, after: tuple[UUID, int] | None, limit: int) -> Sequence[Seal]:
    """Return the next seals, ordered by chain and number."""
    rows = await db.fetch(_SEALS, *(after or (None, None)), limit)
    return [
        Seal(
            chain_id=row["chain_id"],
            number=row["number"],
            first_record=row["first_record"],
            last_record=row["last_record"],
            previous=row["previous"],
            digest=row["digest"],
            expected_previous=b"\0" * 32 if row["begins"] else row["expected_previous"],
            link_forgotten=row["link_forgotten"],
        )
        for row in rows
    ]


_RECORDS: Final[LiteralString] = f"""
    SELECT {_COLUMNS}
      FROM audit_records
     WHERE chain_id = $1 AND number BETWEEN $2 AND $3
     ORDER BY number
"""


async def records_under(db: Db, seal: Seal) -> Sequence[Kept]:
    """Return the records that a seal covers, in order."""
    rows = await db.fetch(_RECORDS, seal.chain_id, seal.first_record, seal.last_record)
    return [_to_kept(row) for row in rows]


# A seal that retention removed cannot be looked up; a later checkpoint of its chain vouches for it.
_KNOWN: Final[LiteralString] = """
    SELECT k.place - 1 AS place
      FROM unnest($1::uuid[], $2::bigint[], $3::bytea[])
           WITH ORDINALITY AS k(chain_id, number, digest, place)
     WHERE NOT EXISTS (SELECT 1 FROM audit_seals s
                        WHERE s.chain_id = k.chain_id AND s.number = k.number
                          AND s.digest = k.digest)
       AND NOT EXISTS (SELECT 1 FROM audit_checkpoints p
                        WHERE p.chain_id = k.chain_id
                          AND (p.seal_number > k.number
                               OR (p.seal_number = k.number AND p.digest = k.digest)))
     ORDER BY k.place
"""


async def unknown_seals(db: Db, known: Sequence[tuple[UUID, int, bytes]]) -> Sequence[int]:
    """Return the indexes of those seals that are not stored as they were noted."""
    rows = await db.fetch(_KNOWN, *([each[at] for each in known] for at in range(3)))
    return [row["place"] for row in rows]


def _to_kept(row: Row) -> Kept:
    return Kept(row["chain_id"], row["number"], Record(*(row[name] for name in Record._fields)))
