"""Leases of members that ran out while nobody could renew them, and of one that is dead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from services.kit.pg import Pool, open_pool
from services.orchestrator.engine.journal import FencedError
from services.orchestrator.engine.member import Member
from services.orchestrator.storage import members
from tests.support.database import Database

_AWAY_S = 60.0
_TTL_S = 10.0
_RUN_OUT = "UPDATE engine_members SET expires_at = clock_timestamp() - interval '1 second'"


class Site:
    """Members over one database, with a clock of the test's."""

    def __init__(self, pool: Pool, sql: Any) -> None:
        self.sql = sql
        self.now_s = 1000.0
        self._pool = pool

    async def member(self, name: str) -> Member:
        """Make one that has renewed its lease for a while."""
        made = Member(
            self._pool,
            host=name,
            address=f"unix:/{name}",
            proof=False,
            ttl_s=_TTL_S,
            clock=lambda: self.now_s,
        )
        await made.join()
        return made

    async def goes_on(self, *members: Member, seconds: float = 4.0) -> None:
        """Let time pass in which members renew their leases."""
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.now_s += 1.0
            for each in members:
                await each.renew()

    def is_away(self) -> None:
        """Have the database been away for longer than leases last."""
        self.now_s += _AWAY_S
        self.sql.execute(_RUN_OUT)

    def state(self, member: Member) -> str:
        row = self.sql.execute(
            "SELECT state FROM engine_members WHERE id = %s", (member.id,)
        ).fetchone()
        return str(row[0])


@pytest_asyncio.fixture
async def site(database: Database) -> AsyncIterator[Site]:
    pool = await open_pool(
        database.url("qflow_orchestrator_engine"), application_name="t", size_max=2
    )
    with database.connect() as sql:
        yield Site(pool, sql)
    await pool.close()


async def test_whoever_comes_back_first_lets_the_others_come_back(site: Site) -> None:
    """F11, F12, I9: an outage ends no process, whichever of them has the database first."""
    a, b = await site.member("a"), await site.member("b")
    await site.goes_on(a, b)
    site.is_away()
    await a.renew()
    await a.survey()
    assert "live" == site.state(b)
    await b.renew()
    await site.goes_on(a, b)
    assert {a.id, b.id} == {each.id for each in await a.survey()}


async def test_one_that_does_not_come_back_is_fenced_a_heartbeat_later(site: Site) -> None:
    a, b = await site.member("a"), await site.member("b")
    await site.goes_on(a, b)
    site.is_away()
    await a.renew()
    await site.goes_on(a)
    await a.survey()
    assert "fenced" == site.state(b)


async def test_whoever_lost_a_server_for_another_lets_the_others_come_back(site: Site) -> None:
    """I9: one that was promoted knows of no renewal since it lost sight of the first."""
    a, b = await site.member("a"), await site.member("b")
    await site.goes_on(a, b)
    site.sql.execute(_RUN_OUT)
    await a.advance()
    await a.renew()
    await a.survey()
    assert "live" == site.state(b)
    await site.goes_on(a)
    await a.survey()
    assert "fenced" == site.state(b)


async def test_one_that_dies_while_the_database_is_there_is_fenced_at_once(site: Site) -> None:
    """F2: patience is for those who could not see."""
    a, b = await site.member("a"), await site.member("b")
    await site.goes_on(a, b)
    _run_out(site, b.id)
    await a.survey()
    assert "fenced" == site.state(b)


@pytest.mark.parametrize("how", ["fenced", "run out"])
async def test_nobody_fences_who_is_fenced_or_may_be(site: Site, how: str) -> None:
    """F7, I9: what is left of one that another took over from does not end that one."""
    a, b = await site.member("a"), await site.member("b")
    await site.goes_on(a, b)
    if how == "fenced":
        site.sql.execute("UPDATE engine_members SET state = 'fenced' WHERE id = %s", (a.id,))
    _run_out(site, a.id)
    _run_out(site, b.id)
    if how == "fenced":
        with pytest.raises(FencedError):
            await a.survey()
    else:
        await a.survey()
    assert "live" == site.state(b)


async def test_a_lease_is_certain_until_it_may_have_run_out_and_then_it_is_renewed_first(
    site: Site,
) -> None:
    """F7: one that was stopped for longer goes on from old memory only if nobody took over."""
    a = await site.member("a")
    certain = []
    for later_s in (_TTL_S - 1, 1):
        site.now_s += later_s
        certain.append(a.certain)
    assert [True, False] == certain
    assert await a.holds()
    assert a.certain
    site.sql.execute("UPDATE engine_members SET state = 'fenced'")
    assert await a.holds(), "another can only have taken over once the lease had run out"
    assert not await a.holds(anew=True)
    site.now_s += _TTL_S
    assert not await a.holds()


async def test_a_lease_lasts_from_when_it_was_asked_for(site: Site) -> None:
    """The database may have counted from then on, however late its answer comes."""
    a = await site.member("a")
    site.now_s += 5.0
    began_s, renewed = site.now_s, members.renew

    async def renew_late(*asked: Any) -> bool:
        site.now_s += _TTL_S
        return await renewed(*asked)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(members, "renew", renew_late)
        await a.renew()
    assert site.now_s == began_s + _TTL_S
    assert not a.certain


async def test_one_that_rests_is_not_silent_while_it_looks_in(site: Site) -> None:
    """It has no lease to renew, and keeps its share by looking at the others."""
    a, b = await site.member("a"), await site.member("b")
    await a.rest()
    site.sql.execute(
        "UPDATE engine_members SET updated_at = clock_timestamp() - interval '1 hour'"
        " WHERE id = %s",
        (a.id,),
    )

    async def is_silent() -> bool:
        [found] = [each for each in await b.survey() if each.id == a.id]
        return found.silent

    assert await is_silent()
    await a.survey()
    assert not await is_silent()


def _run_out(site: Site, member_id: UUID) -> None:
    site.sql.execute(f"{_RUN_OUT} WHERE id = %s", (member_id,))
