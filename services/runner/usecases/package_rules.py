"""Reads and sets the package rules of a tenant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.kit.caller import Caller
from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_etag, stale
from services.runner.domain.environments import RequirementError
from services.runner.domain.package_rules import PackageRules, plain_rule
from services.runner.storage import package_rules
from services.runner.storage.package_rules import StoredRules

NO_ETAG: Final = "0"


async def get_rules(pool: Pool, caller: Caller) -> StoredRules | None:
    """Return the rules of the caller's tenant; None if none were set."""
    async with as_caller(pool, caller) as db:
        return await package_rules.get(db)


async def set_rules(
    pool: Pool,
    caller: Caller,
    rules: PackageRules,
    *,
    etag: str,
    key: RequestKey[StoredRules] | None,
) -> StoredRules | Replayed:
    """Replace the rules of the caller's tenant; Conflict if they changed since the etag."""
    plain = PackageRules(
        allowed=_plain(rules.allowed, "allowed"),
        denied=_plain(rules.denied, "denied"),
        release_age_days_min=rules.release_age_days_min,
    )

    async def write(db: Db) -> StoredRules:
        found = await package_rules.get(db)
        check_etag("set of rules", etag_of(found), etag)
        if found is None:
            written = await package_rules.insert(db, plain)
        else:
            written = await package_rules.update(db, plain, found.revision)
        if written is None:  # it was changed concurrently
            raise stale("set of rules", etag_of(await package_rules.get(db)))
        return written

    return await do_once(pool, caller, key, write)


def etag_of(rules: StoredRules | None) -> str:
    """Return an etag that changes with every change."""
    return NO_ETAG if rules is None else str(rules.revision)


def _plain(rules: Sequence[str], field: str) -> list[str]:
    plain, faults = [], []
    for position, text in enumerate(rules):
        try:
            plain.append(plain_rule(text))
        except RequirementError as problem:
            faults.append(FieldViolation(f"{field}[{position}]", str(problem)))
    if faults:
        raise InvalidArgument("INVALID_REQUIREMENT", faults[0].description, fields=faults)
    return sorted(set(plain))
