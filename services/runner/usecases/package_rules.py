"""Reading and setting the rules on a tenant's packages."""

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
    """Give the rules of the caller's tenant; None where nobody has set any."""
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
    """Set all rules of the caller's tenant; Conflict where they are not those of the etag."""
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
        if written is None:  # somebody else was quicker
            raise stale("set of rules", etag_of(await package_rules.get(db)))
        return written

    return await do_once(pool, caller, key, write)


def etag_of(rules: StoredRules | None) -> str:
    """Give what changes with every change."""
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
