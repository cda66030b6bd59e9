"""Limits: whose rows they are, and how places under them are taken."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.migrations.subject import Subject

_TAKE = """
    SELECT claim, refused_by, wait_ms FROM engine_take_slots(
        %s, %s, %s::int[], %s::uuid[], %s::text[], %s::uuid[])
"""


def _limit(s: Subject, name: str = "few", **values: object) -> UUID:
    values = {"id": uuid4(), "name": name, "max_running": 1, **values}
    places = ", ".join(["%s"] * len(values))
    statement = f"INSERT INTO execution_limits ({', '.join(values)}) VALUES ({places})"
    s.db.execute(statement.encode(), tuple(values.values()))
    return UUID(str(values["id"]))


def _member(s: Subject, *, state: str = "live") -> UUID:
    member = uuid4()
    s.db.execute(
        "INSERT INTO engine_members (id, host, address, formats, epoch, state, expires_at)"
        " VALUES (%s, 'h', 'a', '{1}', 1, %s, now() + interval '1 hour')",
        (member, state),
    )
    return member


def _take(s: Subject, member: UUID, *claims: list[tuple[UUID, str]], epoch: int = 1) -> list[Any]:
    """Ask for claims; gives the limit that refused each."""
    asked = [(at, limit, key) for at, claim in enumerate(claims) for limit, key in claim]
    numbers, limits, keys = ([each[at] for each in asked] for at in range(3))
    slots = [uuid4() for _ in asked]
    rows = s.db.execute(_TAKE, (member, epoch, numbers, limits, keys, slots)).fetchall()
    return [refused_by for _, refused_by, _ in sorted(rows)]


def test_limits_are_their_tenants_alone(mended: Subject) -> None:
    """S9, X14, X17."""
    owner, other = mended.user(), mended.user()
    workflow = mended.workflow(owner)
    with mended.acting(owner, "qflow_orchestrator"):
        _limit(mended)
        _limit(mended, "of_runs", workflow_id=workflow)
        assert not mended.does(lambda: _limit(mended, "theirs", tenant_id=other))
        assert not mended.does(lambda: _limit(mended))
        assert not mended.does(
            lambda: mended.count("UPDATE execution_limits SET tenant_id = %s", other)
        )
    with mended.acting(other, "qflow_orchestrator"):
        assert 0 == mended.count("SELECT 1 FROM execution_limits")
        assert 0 == mended.count("UPDATE execution_limits SET max_running = 9")
        assert 0 == mended.count("DELETE FROM execution_limits")
        assert not mended.does(lambda: _limit(mended, "spy", workflow_id=workflow))
        assert mended.does(lambda: _limit(mended))
    with mended.acting(None, "qflow_orchestrator"):
        assert 0 == mended.count("SELECT 1 FROM execution_limits")
    with mended.acting(owner, "qflow_orchestrator", role="viewer"):
        assert 2 == mended.count("SELECT 1 FROM execution_limits")
        assert 0 == mended.count("UPDATE execution_limits SET max_running = 9")
        assert not mended.does(lambda: _limit(mended, "new"))


@pytest.mark.parametrize(
    "values",
    [
        {"max_running": None},
        {"max_running": 0},
        {"max_starts": 1},
        {"period_ms": 1000},
        {"max_starts": 1, "period_ms": 1},
        {"name": "a b"},
        {"owner_id": uuid4()},
    ],
)
def test_a_limit_allows_something_that_makes_sense(mended: Subject, values: dict[str, Any]) -> None:
    owner = mended.user()
    with mended.acting(owner, "qflow_orchestrator"):
        assert not mended.does(lambda: _limit(mended, **values))


def test_a_limit_of_an_owner_is_about_who_is_in_the_tenant(mended: Subject) -> None:
    """X14: by the database itself, which also keeps whom it is about."""
    owner, stranger = mended.user(), mended.user()
    with mended.acting(owner, "qflow_orchestrator"):
        assert mended.does(lambda: _limit(mended, "mine", owner_id=owner))
        assert mended.does(lambda: _limit(mended, "each", per_owner=True))
        assert not mended.does(lambda: _limit(mended, "theirs", owner_id=stranger))
        assert not mended.does(lambda: _limit(mended, "both", owner_id=owner, per_owner=True))
        assert not mended.does(lambda: mended.count("UPDATE execution_limits SET owner_id = NULL"))
        assert not mended.does(lambda: mended.count("UPDATE execution_limits SET per_owner = true"))
        seen = mended.db.execute("SELECT is_member(%s), is_member(%s)", (owner, stranger))
        assert (True, False) == seen.fetchone()


def _of_owner(s: Subject, *limits: dict[str, Any]) -> list[UUID]:
    owner = s.user()
    with s.acting(owner, "qflow_orchestrator"):
        return [_limit(s, f"l{at}", **values) for at, values in enumerate(limits)]


def test_places_are_taken_wholly_or_not_at_all_and_counted_by_key(mended: Subject) -> None:
    """I32."""
    two, one = _of_owner(mended, {"max_running": 2}, {"max_running": 1})
    member = _member(mended)
    with mended.acting(None, "qflow_orchestrator_engine"):
        both = [(two, "a"), (one, "")]
        assert [None, one, None, two] == _take(
            mended, member, both, [(one, ""), (two, "b")], [(two, "a")], [(two, "a")]
        )
        assert 3 == mended.count("SELECT 1 FROM limit_slots")
        assert [None, None, two] == _take(mended, member, *[[(two, "b")]] * 3)
        mended.db.execute("DELETE FROM limit_slots WHERE ordinal = 1 AND key = 'b'")
        assert [None, two] == _take(mended, member, *[[(two, "b")]] * 2)


def test_a_lowered_limit_gives_no_place_while_as_many_are_taken(mended: Subject) -> None:
    [few] = _of_owner(mended, {"max_running": 3})
    member = _member(mended)
    with mended.acting(None, "qflow_orchestrator_engine"):
        assert [None] * 3 == _take(mended, member, *[[(few, "")]] * 3)
    mended.db.execute("UPDATE execution_limits SET max_running = 2")
    with mended.acting(None, "qflow_orchestrator_engine"):
        mended.db.execute("DELETE FROM limit_slots WHERE ordinal = 1")
        assert [few] == _take(mended, member, [(few, "")])
        mended.db.execute("DELETE FROM limit_slots WHERE ordinal = 2")
        assert [None, few] == _take(mended, member, *[[(few, "")]] * 2)


def test_a_member_that_is_fenced_takes_nothing(mended: Subject) -> None:
    """I10: neither one that is gone nor one of an older epoch."""
    [few] = _of_owner(mended, {"max_running": 3})
    gone, live = _member(mended, state="fenced"), _member(mended)
    with mended.acting(None, "qflow_orchestrator_engine"):
        for member, epoch in ((gone, 1), (live, 0), (uuid4(), 1)):
            with (
                pytest.raises(psycopg.DatabaseError, match="fenced") as refused,
                mended.db.transaction(),
            ):
                _take(mended, member, [(few, "")], epoch=epoch)
            assert "QF002" == refused.value.sqlstate
        assert mended.does(lambda: _take(mended, live, [(few, "")]))


def test_a_rate_gives_its_tokens_and_says_when_the_next_is_there(mended: Subject) -> None:
    [rate] = _of_owner(mended, {"max_running": None, "max_starts": 2, "period_ms": 60_000})
    member = _member(mended)
    with mended.acting(None, "qflow_orchestrator_engine"):
        assert [None, None, rate] == _take(mended, member, *[[(rate, "")]] * 3)
        asked = (member, 1, [0], [rate], [""], [uuid4()])
        [(_, refused_by, wait_ms)] = mended.db.execute(_TAKE, asked).fetchall()
        assert rate == refused_by
        assert 25_000 < wait_ms <= 30_000
        mended.db.execute(
            "UPDATE limit_buckets SET updated_at = updated_at - interval '45 seconds'"
        )
        assert [None, rate] == _take(mended, member, *[[(rate, "")]] * 2)
        mended.db.execute("UPDATE limit_buckets SET updated_at = updated_at - interval '1 day'")
        assert [None, None, rate] == _take(mended, member, *[[(rate, "")]] * 3)
        assert 0 == mended.count("SELECT 1 FROM limit_slots")


def test_places_go_with_their_limit_and_with_what_has_them(mended: Subject) -> None:
    [few] = _of_owner(mended, {"max_running": 3})
    member = _member(mended)
    with mended.acting(None, "qflow_orchestrator_engine"):
        assert [None] * 3 == _take(mended, member, *[[(few, "")]] * 3)
    mended.db.execute("DELETE FROM execution_limits")
    assert 0 == mended.count("SELECT 1 FROM limit_slots")
