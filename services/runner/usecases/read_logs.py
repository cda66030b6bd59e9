"""Reads the output of nodes: by page, or continuously."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import NotFound
from services.kit.pg import Pool, as_caller
from services.runner.storage import node_logs
from services.runner.storage.node_logs import Choice, LogState, StoredLine
from services.runner.usecases.node_logs import NodeLogs

# Poll interval for lines of other runners; each poll is one index look-up.
_LOOK_S: Final = 0.5
_ALIVE_S: Final = 15.0
_LATE_S: Final = 2.0
_LINES_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Lines of a watched log; it is complete up to `sequence`."""

    lines: list[StoredLine]
    sequence: int
    state: LogState
    is_last: bool = False


async def list_logs(
    pool: Pool, caller: Caller, execution_id: UUID, choice: Choice, *, after: int, limit: int
) -> tuple[list[StoredLine], LogState]:
    """Return lines after `after`, and the log's state; NotFound if the run is not visible."""
    async with as_caller(pool, caller) as db:
        state = await node_logs.state(db, execution_id)
        if state is None:
            raise _missing(execution_id)
        lines = await node_logs.read(db, execution_id, choice, after=after, limit=limit)
    return lines, state


async def watch_logs(
    pool: Pool, logs: NodeLogs, caller: Caller, execution_id: UUID, choice: Choice, *, after: int
) -> AsyncGenerator[Piece, None]:
    """Yield lines as they come until the run is over, and an empty piece now and then."""
    said_at = 0.0
    while True:
        # The state is read first: lines written until then are read after it.
        lines, state = await list_logs(
            pool, caller, execution_id, choice, after=after, limit=_LINES_AT_ONCE
        )
        whole = len(lines) < _LINES_AT_ONCE
        after = max(after, state.line_count if whole else 0, lines[-1].sequence if lines else 0)
        is_last = whole and _is_over(state)
        now = time.monotonic()
        if lines or is_last or now - said_at > _ALIVE_S:
            said_at = now
            yield Piece(lines=lines, sequence=after, state=state, is_last=is_last)
        if is_last:
            return
        if whole:
            await logs.changed(_LOOK_S)


def _is_over(state: LogState) -> bool:
    """Return whether no more lines are expected: runners write them a little after the result."""
    if state.over_at is None:
        return False
    return (datetime.now(UTC) - state.over_at).total_seconds() > _LATE_S


def _missing(execution_id: UUID) -> NotFound:
    return NotFound(
        "EXECUTION_NOT_FOUND",
        "there is no such execution",
        resource=("execution", str(execution_id)),
    )
