"""The statements by which members live, write and move shards: what each of them refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
import pytest_asyncio

from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, open_pool, transaction
from services.orchestrator.storage import members, shards
from tests import factories
from tests.support.database import Database

_LATER: Final = "1 hour"
_OVER: Final = "-1 hour"
_SHARDS: Final = 64
Act = Callable[[Db, UUID, int], Awaitable[object]]


@dataclass
class Table:
    """Members as they stand in the database, and what one of them asks of it."""

    sql: psycopg.Connection
    pool: Pool

    def member(
        self,
        epoch: int,
        state: str = "live",
        *,
        expires_in: str = _LATER,
        silent_for: str = "0 s",
        address: str | None = "unix:/none",
        formats: str = "{1}",
        host: str | None = None,
    ) -> UUID:
        member_id = uuid7()
        self.sql.execute(
            "INSERT INTO engine_members (id, epoch, state, expires_at, address, formats, host,"
            " updated_at) VALUES (%s, %s, %s::text, CASE WHEN %s::text = 'live' THEN"
            " clock_timestamp() + %s::interval END, %s, %s, %s, clock_timestamp() - %s::interval)",
            (member_id, epoch, state, state, expires_in, address, formats, host, silent_for),
        )
        return member_id

    def runner(self, state: str, *, expires_in: str | None = None) -> UUID:
        incarnation = uuid7()
        self.sql.execute(
            "INSERT INTO runner_members (incarnation, state, expires_at)"
            " VALUES (%s, %s, clock_timestamp() + %s::interval)",
            (incarnation, state, expires_in),
        )
        return incarnation

    def owns_all(self, member_id: UUID | None) -> None:
        self.sql.execute("UPDATE engine_shards SET member_id = %s", (member_id,))

    def run(self, engine_format: int, status: str = "running") -> None:
        """Let there be a run of a format, in the first shard."""
        owner = factories.user(self.sql)
        node = factories.node(self.sql, owner)
        workflow = factories.workflow(
            self.sql, owner, nodes={"a": node}, edges=[("", "x", "a", "x")], outputs=[("y", "a")]
        )
        self.sql.execute(
            "INSERT INTO workflow_executions (workflow_id, workflow_version, status, shard,"
            " tenant_id, created_by, started_at, completed_at, engine_format)"
            " SELECT %s, 1, status, 0, %s, %s, CASE WHEN status <> 'pending' THEN now() END,"
            " CASE WHEN status = 'completed' THEN now() END, %s FROM CAST(%s AS text) AS status",
            (workflow, owner.id, owner.id, engine_format, status),
        )

    def row(self, member_id: UUID) -> tuple[Any, ...]:
        row = self.sql.execute(
            "SELECT epoch, state, expires_at, address, updated_at FROM engine_members"
            " WHERE id = %s",
            (member_id,),
        ).fetchone()
        assert row is not None
        return row

    async def ask(self, act: Callable[[Db], Awaitable[Any]]) -> Any:
        async with transaction(self.pool) as db:
            return await act(db)

    async def give(self, owner: UUID, epoch: int, taker: UUID) -> bool:
        return bool(await self.ask(lambda db: shards.give(db, owner, epoch, shard=0, taker=taker)))

    async def take(self, member_id: UUID, epoch: int) -> int:
        """Take all shards that nobody has; give how many those were."""
        taken = await self.ask(
            lambda db: shards.take_orphans(db, member_id, epoch, count=_SHARDS, formats=[1])
        )
        return len(taken)


@pytest_asyncio.fixture
async def table(database: Database) -> AsyncIterator[Table]:
    pool = await open_pool(
        database.url("qflow_orchestrator_engine"), application_name="t", size_max=2
    )
    with database.connect() as sql:
        yield Table(sql, pool)
    await pool.close()


_OF_ONE_THAT_LIVES: Final[dict[str, Act]] = {
    "a longer lease": lambda db, me, epoch: members.renew(db, me, epoch, 60.0),
    "a higher epoch": members.advance,
    "rest": lambda db, me, epoch: members.rest(db, me, epoch, state="idle"),
    "an end in order": lambda db, me, epoch: members.rest(db, me, epoch, state="gone"),
    "to be looked at": members.look_in,
    "orphans": lambda db, me, epoch: shards.take_orphans(db, me, epoch, count=9, formats=[1]),
}


@pytest.mark.parametrize("asked", _OF_ONE_THAT_LIVES)
@pytest.mark.parametrize("who", ["one that is fenced", "one that is gone", "an older epoch"])
async def test_who_is_not_a_member_any_more_gets_nothing(
    table: Table, asked: str, who: str
) -> None:
    """I9, F7: no state leads out of being fenced, and no epoch but the last one counts."""
    state = {"one that is fenced": "fenced", "one that is gone": "gone"}.get(who, "live")
    me = table.member(7, state)
    before = table.row(me)
    epoch = 6 if who == "an older epoch" else 7
    assert not await table.ask(lambda db: _OF_ONE_THAT_LIVES[asked](db, me, epoch))
    assert before == table.row(me)


async def test_a_member_takes_a_higher_epoch_than_any_has(table: Table) -> None:
    me, _ = table.member(3), table.member(9)
    assert 10 == await table.ask(lambda db: members.advance(db, me, 3))


async def test_who_joins_has_a_higher_epoch_than_any_had(table: Table) -> None:
    """I9: those that are gone count too, and what joined last."""
    table.member(9, "gone")
    epochs = [
        await table.ask(
            lambda db: members.join(db, uuid7(), host="here", address="unix:/none", formats=[1])
        )
        for _ in range(2)
    ]
    assert [10, 11] == epochs


@pytest.mark.parametrize(
    ("other", "by_lease", "fenced"),
    [
        pytest.param({}, True, False, id="one that renews"),
        pytest.param({"expires_in": _OVER}, True, True, id="one whose lease ran out"),
        pytest.param(
            {"expires_in": _OVER}, False, False, id="one whose lease ran out as nobody could renew"
        ),
        pytest.param({"state": "idle"}, True, False, id="one that rests"),
        pytest.param(
            {"state": "idle", "silent_for": "2 days"}, False, True, id="one long silent at rest"
        ),
        pytest.param({"host": "here"}, False, True, id="one at work whose home another has"),
        pytest.param(
            {"host": "here", "state": "idle"}, False, True, id="one at rest whose home another has"
        ),
        pytest.param({"host": "there"}, True, False, id="one of another home"),
    ],
)
async def test_a_member_that_is_dead_is_fenced_by_what_proves_it(
    table: Table, other: dict[str, Any], *, by_lease: bool, fenced: bool
) -> None:
    """F2, F11, I9; whoever asks has the lock of its own home, and does not fence itself."""
    me, it = table.member(1, host="here"), table.member(2, **other)
    found = await table.ask(
        lambda db: members.fence_dead(db, me, host="here", silent_max_s=86_400, by_lease=by_lease)
    )
    assert [it] * fenced == found
    assert ["live", "fenced" if fenced else other.get("state", "live")] == [
        table.row(each)[1] for each in (me, it)
    ]


async def test_shards_of_one_that_rests_are_its_own_until_they_are_taken_of_it(
    table: Table,
) -> None:
    me, resting = table.member(2), table.member(1, "idle")
    table.owns_all(resting)
    assert 0 == await table.take(me, 2)

    def take_three(db: Db) -> Awaitable[list[int]]:
        return shards.take_of_resting(db, me, 2, owner=resting, count=3)

    assert await table.ask(lambda db: members.renew(db, resting, 1, 60.0))
    assert [] == await table.ask(take_three)
    assert await table.ask(lambda db: members.rest(db, resting, 1, state="idle"))
    assert 3 == len(await table.ask(take_three))
    table.sql.execute("UPDATE engine_members SET state = 'fenced' WHERE id = %s", (me,))
    assert [] == await table.ask(take_three)


@pytest.mark.parametrize("status", ["pending", "running", "paused", "completed"])
async def test_orphans_with_a_run_of_an_unknown_format_are_left_to_somebody_else(
    table: Table, status: str
) -> None:
    """While it is open: what is over is nobody's any more."""
    me = table.member(1)
    table.owns_all(None)
    table.run(2, status)
    assert _SHARDS - (status != "completed") == await table.take(me, 1)


async def test_no_more_orphans_are_taken_than_are_ones_share(table: Table) -> None:
    me = table.member(1)
    table.owns_all(None)
    taken = await table.ask(
        lambda db: shards.take_orphans(db, me, 1, count=_SHARDS // 2, formats=[1])
    )
    assert _SHARDS // 2 == len(taken)


_NO_TAKERS: Final[dict[str, dict[str, Any]]] = {
    "rests": {"state": "idle"},
    "is fenced": {"state": "fenced"},
    "has a lease that ran out": {"expires_in": _OVER},
    "is about to end": {"address": None},
}


@pytest.mark.parametrize("why_not", _NO_TAKERS)
async def test_a_shard_is_given_to_nobody_who(table: Table, why_not: str) -> None:
    me = table.member(1)
    other = table.member(2, **_NO_TAKERS[why_not])
    table.owns_all(me)
    assert not await table.give(me, 1, other)
    assert await table.give(me, 1, table.member(3))


@pytest.mark.parametrize("status", ["pending", "running", "paused", "completed"])
async def test_a_shard_is_given_to_who_can_go_on_with_its_runs(table: Table, status: str) -> None:
    me = table.member(1, formats="{1,2}")
    table.owns_all(me)
    table.run(2, status)
    assert (status == "completed") is await table.give(me, 1, table.member(2))
    table.owns_all(me)
    assert await table.give(me, 1, table.member(3, formats="{1,2}"))


@pytest.mark.parametrize(("silent_for", "seen"), [("10 s", False), ("40 s", True)])
async def test_one_that_rests_is_silent_after_a_while(
    table: Table, silent_for: str, *, seen: bool
) -> None:
    table.member(1, "idle", silent_for=silent_for)
    (found,) = await table.ask(lambda db: shards.survey(db, silent_after_s=30))
    assert seen is found.silent


@pytest.mark.parametrize(
    ("state", "expires_in", "silent", "lost"),
    [
        pytest.param("live", "9 s", True, False, id="one that renews, however slow it is"),
        pytest.param("live", "-1 ms", False, True, id="one whose lease ran out"),
        pytest.param("idle", None, False, False, id="one without work"),
        pytest.param("idle", None, True, True, id="one without work that is not heard of"),
        pytest.param("fenced", None, False, True, id="one that was fenced before"),
    ],
)
async def test_a_runner_is_lost_that_no_lease_keeps(
    table: Table, state: str, expires_in: str | None, *, silent: bool, lost: bool
) -> None:
    """G4, I9: a live one is never rescued while it renews."""
    runner = table.runner(state, expires_in=expires_in)
    found = await table.ask(
        lambda db: members.lost_runners(db, [runner], silent=[runner] if silent else [])
    )
    assert ({runner: False} if lost else {}) == found
    row = table.sql.execute("SELECT state FROM runner_members").fetchone()
    assert ("fenced" if lost else state,) == row


async def test_a_runner_that_left_in_order_is_told_from_one_that_was_lost(table: Table) -> None:
    """What it has not answered never began; nothing is known of one without a row."""
    left, unknown = table.runner("gone"), uuid7()
    found = await table.ask(lambda db: members.lost_runners(db, [left, unknown], silent=[]))
    assert {left: True, unknown: False} == found
