"""Pages of what was recorded, for the caller's eyes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from services.kit import page
from services.kit.caller import Caller
from services.kit.pg import Pool, as_caller
from services.telemetry.domain.records import NEWEST, ErrorRecord, HealthSample, Metric, Position
from services.telemetry.storage import errors, health, metrics

_Record = TypeVar("_Record")


async def list_metrics(
    pool: Pool, caller: Caller, *, execution_id: UUID | None, name: str, size: int, token: str
) -> tuple[list[Metric], str]:
    """Give a page of metrics, newest first, and the token of the next; foreign runs have none."""
    pages = _Pages("ListMetrics", caller, page.filter_digest(execution_id, name), size)
    async with as_caller(pool, caller) as db:
        found = await metrics.list_metrics(
            db,
            execution_id=execution_id,
            name=name or None,
            after=pages.after(token),
            limit=pages.limit,
        )
    return pages.cut(found, lambda metric: (metric.recorded_at, metric.id))


async def list_errors(
    pool: Pool, caller: Caller, *, execution_id: UUID | None, size: int, token: str
) -> tuple[list[ErrorRecord], str]:
    """Give a page of errors, newest first, and the token of the next; foreign runs have none."""
    pages = _Pages("ListErrors", caller, page.filter_digest(execution_id), size)
    async with as_caller(pool, caller) as db:
        found = await errors.list_errors(
            db, execution_id=execution_id, after=pages.after(token), limit=pages.limit
        )
    return pages.cut(found, lambda error: (error.created_at, error.id))


async def list_health_samples(
    pool: Pool, caller: Caller, *, size: int, token: str
) -> tuple[list[HealthSample], str]:
    """Give a page of samples, newest first, and the token of the next; administrators only."""
    pages = _Pages("ListHealthSamples", caller, "", size)
    async with as_caller(pool, caller) as db:
        found = await health.list_samples(db, after=pages.after(token), limit=pages.limit)
    return pages.cut(found, lambda sample: (sample.recorded_at, sample.id))


class _Pages:
    """A list by time and id: where a page begins, and where the next one will."""

    def __init__(self, rpc: str, caller: Caller, digest: str, size: int) -> None:
        self._rpc = rpc
        self._tenant = caller.tenant_id
        self._digest = page.filter_digest(digest, caller.user_id)
        self._size = page.page_size(size)

    @property
    def limit(self) -> int:
        """One more than is given: whether there is a next page."""
        return self._size + 1

    def after(self, token: str) -> Position:
        match page.decode_token(token, self._rpc, self._digest, self._tenant):
            case [datetime() as moment, UUID() as record_id]:
                return moment, record_id
            case _:
                return NEWEST

    def cut(
        self, found: Sequence[_Record], key: Callable[[_Record], Position]
    ) -> tuple[list[_Record], str]:
        given = list(found[: self._size])
        if len(found) <= self._size:
            return given, ""
        token = page.encode_token(self._rpc, self._digest, self._tenant, key(given[-1]))
        return given, token
