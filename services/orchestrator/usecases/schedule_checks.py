"""Checks and errors shared by use cases of schedules."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from services.kit.errors import NotFound, invalid
from services.kit.pg import Db
from services.orchestrator.storage import schedules
from services.orchestrator.storage.schedules import Schedule

NO_ID: Final = UUID(int=0)  # with `validate_only`
_FIRST: Final = datetime(1900, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(8999, 1, 1, tzinfo=UTC)


async def hold(db: Db, schedule_id: UUID) -> Schedule:
    """Return a schedule, locked until the transaction ends."""
    held = await schedules.hold(db, schedule_id)
    if held is None:
        raise missing(schedule_id)
    return held


def missing(schedule_id: UUID) -> NotFound:
    """Return the error for a schedule that the caller cannot read, existing or not."""
    return NotFound(
        "SCHEDULE_NOT_FOUND",
        "no such schedule; ListSchedules shows those you may see",
        resource=("schedule", str(schedule_id)),
    )


def check_moment(moment: datetime, *, field: str) -> None:
    """Refuse a time outside the supported range."""
    if not _FIRST <= moment <= _LAST:
        raise invalid(field, "TIME_INVALID", "must be in the years 1900 to 8998")
