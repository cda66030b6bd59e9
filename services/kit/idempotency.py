"""Idempotent calls: the same request id with the same request returns the first response.

`idempotency_keys` belongs to no single service: each stores its responses there by this code.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, LiteralString, TypeVar
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import AlreadyExists, FieldViolation, QflowError
from services.kit.pg import Db, Pool, as_caller

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RequestKey(Generic[T]):
    """The identity of a repeatable call: its id, the digest of its request, and a response encoder.

    The encoded response is opaque here; it is stored and returned as it is.
    """

    method: str
    request_id: UUID
    digest: str
    encode: Callable[[T], bytes]


@dataclass(frozen=True, slots=True)
class Replayed:
    """The stored response of the first call with this request id."""

    response: bytes


class _RacedError(Exception):
    """Another call with the same request id committed first; this transaction is rolled back."""


async def replay(pool: Pool, caller: Caller, key: RequestKey[T] | None) -> Replayed | None:
    """Return the stored response, if any; `AlreadyExists` if that was for a different request."""
    if key is None:
        return None
    async with as_caller(pool, caller) as db:
        found = await _get_answer(
            db, caller.user_id, key.method, key.request_id, tenant_id=caller.tenant_id
        )
    if found is None:
        return None
    digest, response = found
    if digest != key.digest:
        raise AlreadyExists(
            "REQUEST_ID_REUSED",
            "this request_id was used for another request; use a new one",
            fields=[FieldViolation("request_id", "was used for another request")],
        )
    return Replayed(response)


async def write_once(
    pool: Pool,
    caller: Caller,
    key: RequestKey[T] | None,
    write: Callable[[Db], Awaitable[T]],
) -> T | Replayed:
    """Run one transaction and store its response under the request id, atomically."""
    try:
        async with as_caller(pool, caller) as db:
            result = await write(db)
            if key is not None and not await _insert_answer(
                db,
                caller.user_id,
                key.method,
                key.request_id,
                tenant_id=caller.tenant_id,
                digest=key.digest,
                response=key.encode(result),
            ):
                raise _RacedError
            return result
    except _RacedError:
        replayed = await replay(pool, caller, key)
        assert replayed is not None
        return replayed
    except QflowError:
        # The same call may have succeeded meanwhile, and be the cause of this error.
        replayed = await replay(pool, caller, key)
        if replayed is None:
            raise
        return replayed


async def do_once(
    pool: Pool,
    caller: Caller,
    key: RequestKey[T] | None,
    write: Callable[[Db], Awaitable[T]],
) -> T | Replayed:
    """Return the stored response of an earlier call; else `write_once`.

    A use case that reads before it writes calls `replay` itself first: a call that was done is
    replayed whatever has changed since.
    """
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier
    return await write_once(pool, caller, key, write)


class _RehearsedError(Exception):
    """Raised after a success, to roll back."""


async def rehearse(pool: Pool, caller: Caller, write: Callable[[Db], Awaitable[T]]) -> T:
    """Run a transaction and roll it back: raises whatever the real write would raise."""
    results: list[T] = []
    with suppress(_RehearsedError):
        async with as_caller(pool, caller) as db:
            results.append(await write(db))
            raise _RehearsedError
    return results[0]


_GET: Final[LiteralString] = """
    SELECT request_digest, response
      FROM idempotency_keys
     WHERE tenant_id = $1 AND caller_id = $2 AND method = $3 AND request_id = $4
"""


async def _get_answer(
    db: Db, caller_id: UUID, method: str, request_id: UUID, *, tenant_id: UUID
) -> tuple[str, bytes] | None:
    """Return the digest and the response stored for this request id."""
    row = await db.fetchrow(_GET, tenant_id, caller_id, method, request_id)
    return None if row is None else (row["request_digest"], row["response"])


_INSERT: Final[LiteralString] = """
    INSERT INTO idempotency_keys
           (tenant_id, caller_id, method, request_id, request_digest, response, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, now() + interval '7 days')
    ON CONFLICT (tenant_id, caller_id, method, request_id) DO NOTHING
 RETURNING request_id
"""


async def _insert_answer(
    db: Db,
    caller_id: UUID,
    method: str,
    request_id: UUID,
    *,
    tenant_id: UUID,
    digest: str,
    response: bytes,
) -> bool:
    """Store a response; False if another call with this request id was first."""
    inserted = await db.fetchval(
        _INSERT, tenant_id, caller_id, method, request_id, digest, response
    )
    return inserted is not None
