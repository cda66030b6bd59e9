"""Sign-ins that failed before hold up the next ones, for as long as the domain says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from services.kit.errors import QflowError, ResourceExhausted, Unauthenticated
from services.kit.pg import Db, Pool, transaction
from services.registry.domain import lockout
from services.registry.domain.lockout import Keys
from services.registry.storage import sign_in_attempts

# An attempt adds three counts at most: what is left behind by guesses at addresses shrinks.
_PRUNED_MAX: Final = 12


@asynccontextmanager
async def attempt(pool: Pool, address: str, peer: str) -> AsyncIterator[Keys]:
    """Let one try of a password through, or refuse it before any time is spent on it.

    It counts as failed from its beginning, so that many at once are no more than many in turn, and
    whoever goes away in the middle has tried. The block says that it did not fail by `forgive`;
    a refusal other than of the password is taken back here.
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
    """Count a try as good: the address from this peer begins anew, the rest is as it was before."""
    await sign_in_attempts.take_back(db, keys.all)
    await sign_in_attempts.delete_count(db, keys.pair)


async def _begin(pool: Pool, keys: Keys) -> None:
    # Who has to wait is told so by reading alone: a flood writes nothing.
    async with transaction(pool, durable=False) as db:
        _check(keys, await sign_in_attempts.get_counts(db, keys.all))
        counts = await sign_in_attempts.count_attempt(db, sorted(keys.all))
        _check(keys, counts)  # raises where others came between: then this one is not counted
        await sign_in_attempts.prune(db, rows_max=_PRUNED_MAX)


def _check(keys: Keys, counts: sign_in_attempts.Counts) -> None:
    wait_s = lockout.wait_s(
        pair=counts[keys.pair], peer=counts[keys.peer], address=counts[keys.address]
    )
    if wait_s > 0:
        raise ResourceExhausted(
            "SIGN_IN_DELAYED",
            f"too many sign-ins failed; the next may be tried in {max(1, round(wait_s))} s",
            retry_after_s=wait_s,
        )
