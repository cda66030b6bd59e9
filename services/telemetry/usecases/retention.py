"""Retention rules as callers see and set them; requested passes and their history."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller, connection, transaction, translate
from services.kit.updates import check_etag
from services.telemetry.domain.records import NEWEST, Position
from services.telemetry.domain.retention import (
    RULES,
    Due,
    Removed,
    RetentionRun,
    Rule,
    TenantRule,
    rule_of,
)
from services.telemetry.storage import retention_due, retention_rules, retention_runs
from services.telemetry.usecases.figures import Work
from services.telemetry.usecases.retain import forget_all

# Longer than any pass takes.
_LOST: Final = timedelta(hours=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleInForce:
    """The retention of one kind of record: the deployment's, and the tenant's own if set."""

    rule: Rule
    deployment_days: int | None
    own: TenantRule | None


class Retention:
    """Retention rules of this deployment, and passes that apply them."""

    def __init__(
        self, pool: Pool, maint: Pool, keep: Mapping[str, timedelta], work: Work | None = None
    ) -> None:
        self._pool = pool
        self._maint = maint
        self._keep = keep
        self._work = work
        self.asked = asyncio.Event()

    # For callers.

    async def rules(self, caller: Caller) -> list[RuleInForce]:
        """Return all rules in force for the caller."""
        async with as_caller(self._pool, caller) as db:
            own = {each.subject: each for each in await retention_rules.list_rules(db)}
        return [self._in_force(rule, own.get(rule.subject)) for rule in RULES]

    async def set_rule(
        self,
        caller: Caller,
        subject: str,
        *,
        keep_days: int,
        etag: str,
        key: RequestKey[RuleInForce] | None,
    ) -> RuleInForce | Replayed:
        """Set a tenant's own rule, which must not exceed the deployment's."""
        rule = self._settable(subject)
        most = self._keep[subject].days
        if keep_days > most:
            raise FailedPrecondition(
                "RETENTION_TOO_LONG",
                f"this deployment keeps {subject} for {most} days; a tenant may keep them for less",
            )

        async def write(db: Db) -> RuleInForce:
            check_etag("rule", etag_of(await retention_rules.get_rule(db, subject)), etag)
            own = await retention_rules.set_rule(db, subject, keep_days=keep_days)
            return self._in_force(rule, own)

        return await do_once(self._pool, caller, key, write)

    async def reset_rule(
        self, caller: Caller, subject: str, *, etag: str, key: RequestKey[RuleInForce] | None
    ) -> RuleInForce | Replayed:
        """Remove a tenant's own rule, so that the deployment's applies again."""
        rule = self._settable(subject)

        async def write(db: Db) -> RuleInForce:
            check_etag("rule", etag_of(await retention_rules.get_rule(db, subject)), etag)
            await retention_rules.delete_rule(db, subject)
            return self._in_force(rule, None)

        return await do_once(self._pool, caller, key, write)

    async def due(self) -> list[Due]:
        """Count what a pass would delete by the deployment's rules; deletes nothing."""
        return [await self._due(rule) for rule in RULES]

    async def start(
        self, caller: Caller, *, key: RequestKey[RetentionRun] | None
    ) -> RetentionRun | Replayed:
        """Request a pass; the loop makes it."""

        async def write(db: Db) -> RetentionRun:
            return await retention_runs.ask(db, uuid7())

        asked = await do_once(self._pool, caller, key, write)
        if not isinstance(asked, Replayed):
            self.asked.set()
        return asked

    async def run(self, caller: Caller, run_id: UUID) -> RetentionRun:
        """Return a pass; raises NotFound if there is none."""
        async with as_caller(self._pool, caller) as db:
            found = await retention_runs.get_run(db, run_id)
        if found is None:
            raise NotFound(
                "RETENTION_RUN_NOT_FOUND",
                "there is no such retention run",
                resource=("retention_run", str(run_id)),
            )
        return found

    async def runs(
        self, caller: Caller, *, after: Position | None, limit: int
    ) -> list[RetentionRun]:
        """Return passes after a position, newest first."""
        async with as_caller(self._pool, caller) as db:
            return await retention_runs.list_runs(db, after=after or NEWEST, limit=limit)

    # For the loop.

    async def make_pass(self) -> Mapping[str, int]:
        """Delete expired rows and record the result; raises the first error."""
        async with transaction(self._maint) as db:
            await retention_runs.interrupt(db, after=_LOST)
            run_ids = await retention_runs.begin_asked(db)
            if not run_ids:
                run_ids = [uuid7()]
                await retention_runs.begin_due(db, run_ids[0])
        report: list[Removed] = []
        state = "interrupted"
        try:
            removed = await forget_all(self._maint, keep=self._keep, work=self._work, report=report)
            state = "completed"
        except Exception:
            state = "failed"
            raise
        finally:
            # If the database is away, a later pass marks this one as interrupted.
            with suppress(Exception):
                await self._end(run_ids, state, report)
        return removed

    async def is_asked(self) -> bool:
        """Return whether a pass was requested, by this process or another."""
        async with connection(self._maint) as db:
            return await retention_runs.is_asked(db)

    async def _end(self, run_ids: Sequence[UUID], state: str, report: Sequence[Removed]) -> None:
        told = [each for each in report if each.rows or each.fault or each.is_incomplete]
        async with transaction(self._maint) as db:
            await retention_runs.end(db, run_ids, state=state, removed=told)

    async def _due(self, rule: Rule) -> Due:
        try:
            with suppress(_UndoneError):
                async with transaction(self._maint) as db:
                    count = await retention_due.count_due(
                        db, rule.subject, keep=self._keep.get(rule.subject)
                    )
                    raise _UndoneError
        except Exception as error:
            fault = translate(error)
            if not (isinstance(fault, Unavailable) and fault.reason == "DATABASE_SLOW"):
                raise
            return Due(subject=rule.subject, count=None)
        most = retention_due.COUNTED_MAX
        return Due(subject=rule.subject, count=min(count, most), has_more=count > most)

    def _in_force(self, rule: Rule, own: TenantRule | None) -> RuleInForce:
        keep = self._keep.get(rule.subject)
        return RuleInForce(rule=rule, deployment_days=None if keep is None else keep.days, own=own)

    def _settable(self, subject: str) -> Rule:
        rule = rule_of(subject)
        if rule is None or not rule.by_tenant:
            known = ", ".join(each.subject for each in RULES if each.by_tenant)
            raise InvalidArgument(
                "RETENTION_SUBJECT_UNKNOWN", f"a tenant may set {known}", field="subject"
            )
        return rule


class _UndoneError(Exception):
    """Raised to roll back a count, which must leave no trace."""


def etag_of(rule: TenantRule | None) -> str:
    """Return a tag that changes with each change of a tenant's rule; empty without one."""
    return "" if rule is None else f"{rule.revision}-{rule.keep_days}"
