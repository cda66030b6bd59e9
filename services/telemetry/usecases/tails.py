"""Follow records as they are committed, from a position on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Generic, TypeVar
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, NotFound
from services.kit.pg import Db, Pool, as_caller
from services.telemetry.domain.records import (
    LAST_ID,
    SEVERITIES,
    ErrorRecord,
    Metric,
    TailPosition,
)
from services.telemetry.storage import tails

Record = TypeVar("Record")

# The highest age of a resume position, and of a record: older ones are listed, not streamed.
YOUTH: Final = timedelta(days=1)
_LOOK_S: Final = 0.5
_ALIVE_S: Final = 15.0
_AT_ONCE: Final = 500

Read = Callable[[Db, TailPosition, int], Awaitable[Sequence[tuple[TailPosition, Record]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece(Generic[Record]):
    """Records of a stream, each with the position after it, and the position after all."""

    records: Sequence[tuple[TailPosition, Record]]
    position: TailPosition


def watch_metrics(
    pool: Pool,
    caller: Caller,
    *,
    name: str,
    execution_id: UUID | None,
    after: TailPosition | None,
) -> AsyncGenerator[Piece[Metric], None]:
    """Stream metrics as they are committed; raises NotFound if the run is not visible."""

    async def read(
        db: Db, position: TailPosition, before: int
    ) -> Sequence[tuple[TailPosition, Metric]]:
        return await tails.metrics_after(
            db,
            position,
            before=before,
            name=name or None,
            execution_id=execution_id,
            youth=YOUTH,
            limit=_AT_ONCE,
        )

    return _follow(partial(as_caller, pool, caller), read, execution_id, after)


def watch_errors(
    pool: Pool,
    caller: Caller,
    *,
    minimum: str,
    execution_id: UUID | None,
    after: TailPosition | None,
) -> AsyncGenerator[Piece[ErrorRecord], None]:
    """Stream errors of at least a severity; raises NotFound if the run is not visible."""
    severities = SEVERITIES[SEVERITIES.index(minimum) :]

    async def read(
        db: Db, position: TailPosition, before: int
    ) -> Sequence[tuple[TailPosition, ErrorRecord]]:
        return await tails.errors_after(
            db,
            position,
            before=before,
            severities=severities,
            execution_id=execution_id,
            youth=YOUTH,
            limit=_AT_ONCE,
        )

    return _follow(partial(as_caller, pool, caller), read, execution_id, after)


def checked_position(position: TailPosition, *, at: datetime, now: datetime) -> TailPosition:
    """Return a position issued at `at`; raises FailedPrecondition if that is too long ago."""
    if now - at > YOUTH:
        raise FailedPrecondition(
            "RESUME_TOKEN_TOO_OLD",
            "the token is more than a day old: list the existing ones, and watch without a token",
        )
    return position


async def _follow(
    begun: Callable[[], AbstractAsyncContextManager[Db]],
    read: Read[Record],
    execution_id: UUID | None,
    position: TailPosition | None,
) -> AsyncGenerator[Piece[Record], None]:
    said_at = float("-inf")
    while True:
        async with begun() as db:
            if execution_id is not None and not await tails.execution_exists(db, execution_id):
                raise _missing(execution_id)
            before = await tails.horizon(db)
            # A new stream starts here: earlier transactions are not reported.
            position = position or (before - 1, LAST_ID)
            found = await read(db, position, before)
        is_whole = len(found) < _AT_ONCE
        position = max(position, (before - 1, LAST_ID)) if is_whole else found[-1][0]
        now = time.monotonic()
        if found or now - said_at > _ALIVE_S:
            said_at = now
            yield Piece(records=found, position=position)
        if is_whole:
            await asyncio.sleep(_LOOK_S)


def _missing(execution_id: UUID) -> NotFound:
    return NotFound(
        "EXECUTION_NOT_FOUND",
        "there is no such execution",
        resource=("execution", str(execution_id)),
    )
