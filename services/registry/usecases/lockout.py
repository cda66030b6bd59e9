"""Delay sign-ins after failed ones, by the rules of the domain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from services.kit.errors import QflowError, ResourceExhausted, Unauthenticated
from services.kit.pg import Db, Pool, transaction
from services.registry.domain import lockout
from services.registry.domain.lockout import Keys
from services.registry.storage import sign_in_attempts

# More rows than an attempt adds (at most three), so that rows left by guessing at addresses shrink.
_PRUNED_MAX: Final = 12


@asynccontextmanager
async def attempt(pool: Pool, address: str, peer: str) -> AsyncIterator[Keys]:
    """Admit one password attempt, or raise ResourceExhausted before any time is spent on it.

    The attempt counts as failed from its start, so that concurrent attempts gain nothing over
    sequential ones, and an aborted call counts too. The block calls `forgive` on success; a
    QflowError other than Unauthenticated uncounts the attempt.
    """
    keys = lockout.keys_of(address, peer)
    await _begin(pool, keys)
    try:
        yield keys
    except Unauthenticated:
        raise
    except QflowError:
        async with transaction(pool, durable=False) as db:
            await sign_in_attempts.take_back(db, keys.all)
        raise


async def forgive(db: Db, keys: Keys) -> None:
    """Count an attempt as successful: resets this address and peer, and uncounts the others."""
    await sign_in_attempts.take_back(db, keys.all)
    await sign_in_attempts.delete_count(db, keys.pair)


async def _begin(pool: Pool, keys: Keys) -> None:
    # Check by a read first, so that a flood of refused attempts writes nothing.
    async with transaction(pool, durable=False) as db:
        _check(keys, await sign_in_attempts.get_counts(db, keys.all))
        counts = await sign_in_attempts.count_attempt(db, sorted(keys.all))
        _check(keys, counts)  # raises if concurrent ones were first; this one is then not counted
        await sign_in_attempts.prune(db, rows_max=_PRUNED_MAX)


def _check(keys: Keys, counts: sign_in_attempts.Counts) -> None:
    wait_s = lockout.wait_s(
        pair=counts[keys.pair], peer=counts[keys.peer], address=counts[keys.address]
    )
    if wait_s > 0:
        raise ResourceExhausted(
            "SIGN_IN_DELAYED",
            f"too many sign-ins failed; try again in {max(1, round(wait_s))} s",
            retry_after_s=wait_s,
        )
