"""Sign-ins that fail make the next ones wait, and tell nobody anything by how or when they fail."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import grpc
import psycopg
import pytest
from qflow.registry.v1 import session_service_pb2 as pb

from services.kit.errors import QflowError, ResourceExhausted, Unauthenticated
from services.kit.pg import open_pool
from services.registry.gateways.passwords import Passwords
from services.registry.usecases.bootstrap import create_user
from services.registry.usecases.identity import Identity
from services.registry.usecases.sessions import sign_in
from tests.integration.registry.accounts import PASSWORD, again, caller, signed_in
from tests.integration.registry.conftest import Registry, refused
from tests.support.database import Database

ADA, WRONG = "ada@example.org", "wrong horse"
_COUNTS = "SELECT key, failures FROM sign_in_attempts ORDER BY 1"


class _Recorded(Passwords):
    """Counts how often a password is looked at."""

    asked = 0

    async def verify(self, password_hash: str | None, password: str) -> bool:
        self.asked += 1
        return await super().verify(password_hash, password)


async def _deps(database: Database) -> Identity:
    return Identity(
        auth_pool=await open_pool(
            database.url("qflow_registry_auth"), application_name="test", size_max=2
        ),
        passwords=Passwords(),
        session_lifetime=timedelta(hours=1),
        forget=lambda _: None,
    )


@pytest.fixture
async def deps(database: Database) -> AsyncIterator[Identity]:
    made = await _deps(database)
    await create_user(database.url("qflow_registry_auth"), email=ADA, password=PASSWORD)
    yield made
    await made.auth_pool.close()


async def _fails(
    deps: Identity, times: int, *, email: str = ADA, peer: str = "192.0.2.1"
) -> list[type[QflowError]]:
    """Try a wrong password some times; how each was refused."""
    found: list[type[QflowError]] = []
    for _ in range(times):
        with pytest.raises(QflowError) as caught:
            await sign_in(deps, email=email, password=WRONG, peer=peer)
        found.append(caught.type)
    return found


def _passes(sql: psycopg.Connection, seconds: float) -> None:
    """Let time pass: for the counts it has."""
    sql.execute(
        "UPDATE sign_in_attempts SET failed_at = failed_at - make_interval(secs => %s)", (seconds,)
    )


def _just_failed(sql: psycopg.Connection) -> None:
    """Let the last failures be of now: a slow machine must not use up the wait that follows."""
    sql.execute("UPDATE sign_in_attempts SET failed_at = clock_timestamp()")


@pytest.mark.parametrize("email", [ADA, "nobody@example.org", "no address"])
async def test_after_ten_failures_each_waits_twice_as_long_whether_anybody_has_the_address(
    deps: Identity, sql: psycopg.Connection, email: str
) -> None:
    """X51: no enumeration by who has to wait."""
    assert await _fails(deps, 10, email=email) == [Unauthenticated] * 10
    waits = []
    for _ in range(10):
        _just_failed(sql)
        with pytest.raises(ResourceExhausted) as caught:
            await sign_in(deps, email=email, password=WRONG, peer="192.0.2.1")
        assert caught.value.reason == "SIGN_IN_DELAYED"
        waits.append(caught.value.retry_after_s or 0.0)
        _passes(sql, waits[-1])
        assert await _fails(deps, 1, email=email) == [Unauthenticated]
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 64, 128, 256, 300], abs=0.9)


async def test_while_a_wait_lasts_nothing_is_hashed_nor_counted_and_even_the_right_one_waits(
    deps: Identity, sql: psycopg.Connection
) -> None:
    await _fails(deps, 10)
    sql.execute("UPDATE sign_in_attempts SET failures = 20")
    counted = sql.execute(_COUNTS).fetchall()
    passwords = _Recorded()
    deps = replace(deps, passwords=passwords)
    assert await _fails(deps, 20) == [ResourceExhausted] * 20
    with pytest.raises(ResourceExhausted):
        await sign_in(deps, email=ADA, password=PASSWORD, peer="192.0.2.1")
    assert passwords.asked == 0
    assert (
        counted == sql.execute("SELECT key, failures FROM sign_in_attempts ORDER BY 1").fetchall()
    )


async def test_the_right_password_ends_the_wait_for_this_address_and_peer(
    deps: Identity, sql: psycopg.Connection
) -> None:
    await _fails(deps, 10)
    _passes(sql, 1.0)
    assert (await sign_in(deps, email=ADA, password=PASSWORD, peer="192.0.2.1")).token
    assert await _fails(deps, 10) == [Unauthenticated] * 10


async def test_nobody_is_locked_out_by_strangers(deps: Identity, sql: psycopg.Connection) -> None:
    """X51: guesses from everywhere, for as long as they like."""
    await _fails(deps, 10)
    sql.execute("UPDATE sign_in_attempts SET failures = 1000000")
    assert (await sign_in(deps, email=ADA, password=PASSWORD, peer="198.51.100.7")).token
    # A new peer has one guess before waits begin, and whoever guesses wrong is not let in sooner.
    assert await _fails(deps, 1, peer="203.0.113.9") == [Unauthenticated]
    _just_failed(sql)
    assert await _fails(deps, 1, peer="203.0.113.9") == [ResourceExhausted]
    # From where the guesses come the wait is bounded too.
    _passes(sql, 300.0)
    assert (await sign_in(deps, email=ADA, password=PASSWORD, peer="192.0.2.1")).token


async def test_one_peer_that_tries_one_password_of_many_waits(
    deps: Identity, sql: psycopg.Connection
) -> None:
    for number in range(50):
        assert await _fails(deps, 1, email=f"u{number}@example.org") == [Unauthenticated]
    _just_failed(sql)
    assert await _fails(deps, 1, email="next@example.org") == [ResourceExhausted]
    assert await _fails(deps, 1, email="next@example.org", peer="192.0.2.2") == [Unauthenticated]


async def test_sign_ins_that_succeed_make_nobody_wait(
    deps: Identity, sql: psycopg.Connection
) -> None:
    for _ in range(60):
        await sign_in(deps, email=ADA, password=PASSWORD, peer="192.0.2.1")
    assert sql.execute("SELECT max(failures) FROM sign_in_attempts").fetchone() == (0,)


async def test_a_new_process_knows_of_the_failures(
    deps: Identity, database: Database, sql: psycopg.Connection
) -> None:
    await _fails(deps, 10)
    later = await _deps(database)
    _just_failed(sql)
    assert await _fails(later, 1) == [ResourceExhausted]
    await later.auth_pool.close()


async def test_counts_that_say_nothing_any_more_are_removed(
    deps: Identity, sql: psycopg.Connection
) -> None:
    for number in range(30):
        await _fails(deps, 1, email=f"u{number}@example.org", peer=f"192.0.2.{number}")
    before = sql.execute("SELECT count(*) FROM sign_in_attempts").fetchone()
    assert before == (90,)
    _passes(sql, 3601.0)
    for number in range(10):
        await _fails(deps, 1, email=f"later{number}@example.org", peer="203.0.113.1")
    left = sql.execute(
        "SELECT count(*) FROM sign_in_attempts WHERE failed_at < now() - interval '1 hour'"
    ).fetchone()
    assert left == (0,)


async def test_what_is_stored_of_an_address_is_not_the_address(
    deps: Identity, sql: psycopg.Connection
) -> None:
    await _fails(deps, 1)
    rows = [row for (row,) in sql.execute("SELECT t::text FROM sign_in_attempts t")]
    assert len(rows) == 3
    assert not [row for row in rows if "ada" in row or "192.0.2" in row]


@pytest.mark.usefixtures("full_hashes")
async def test_how_long_a_refusal_takes_tells_nothing(
    deps: Identity, sql: psycopg.Connection, database: Database
) -> None:
    """X51: of an unknown address, a wrong password, and users who are out or invited.

    What is taken is processor time, the least of some turns: a hash is work that a short cut would
    save, and how long the machine lets it wait tells of the machine.
    """
    url = database.url("qflow_registry_auth")
    for name in ("gone", "invited"):
        await create_user(url, email=f"{name}@example.org", password=PASSWORD)
    sql.execute("UPDATE users SET is_active = false WHERE email = 'gone@example.org'")
    sql.execute("UPDATE users SET password_hash = NULL WHERE email = 'invited@example.org'")
    kinds = {
        "wrong": (ADA, WRONG),
        "unknown": ("nobody@example.org", WRONG),
        "malformed": ("a@b@c", WRONG),
        "deactivated": ("gone@example.org", PASSWORD),
        "invited": ("invited@example.org", PASSWORD),
    }
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    texts = set()
    for turn in range(15):
        for kind, (email, password) in kinds.items():
            started = time.process_time()
            with pytest.raises(Unauthenticated) as caught:
                await sign_in(deps, email=email, password=password, peer=f"192.0.2.{turn}")
            took[kind].append(time.process_time() - started)
            texts.add((caught.value.reason, caught.value.message))
    assert len(texts) == 1
    least = {kind: min(times) for kind, times in took.items()}
    assert min(least.values()) > 0.6 * max(least.values()), least


@pytest.mark.slow
@pytest.mark.usefixtures("full_hashes")
async def test_a_flood_of_sign_ins_is_refused_and_nobody_else_is_held_up(
    registry: Registry, database: Database
) -> None:
    """B83: those with a session call on, and who comes from elsewhere signs in meanwhile."""
    floods = 100 if os.environ.get("QFLOW_TEST_FULL") else 15
    ada = await signed_in(registry, database, "ada")
    elsewhere = await _deps(database)
    flood = caller(registry)
    codes: Counter[grpc.StatusCode] = Counter()
    others: list[float] = []

    async def guess(number: int) -> None:
        try:
            await flood.sessions.SignIn(
                pb.SignInRequest(email=f"u{number % 700}@example.org", password=WRONG), timeout=30
            )
        except grpc.aio.AioRpcError as error:
            codes[error.code()] += 1

    async def timed(call: Callable[[], Awaitable[object]]) -> None:
        started = time.monotonic()
        await call()
        others.append(time.monotonic() - started)

    for batch in range(floods):
        guesses = [asyncio.ensure_future(guess(batch * 100 + each)) for each in range(100)]
        await timed(lambda: ada.sessions.GetCaller(pb.GetCallerRequest()))
        if batch % 5 == 0:
            await timed(
                lambda: sign_in(elsewhere, email=ADA, password=PASSWORD, peer="198.51.100.1")
            )
        await asyncio.gather(*guesses)
    await elsewhere.auth_pool.close()
    assert set(codes) <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED}
    assert codes.total() == floods * 100
    assert codes[grpc.StatusCode.UNAUTHENTICATED] < 100
    assert max(others) < 5.0, sorted(others)[-5:]


async def test_the_call_says_when_to_try_again(
    registry: Registry, database: Database, sql: psycopg.Connection
) -> None:
    await signed_in(registry, database, "ada")
    client = caller(registry)
    request = pb.SignInRequest(email=ADA, password=WRONG)
    tried = [await refused(client.sessions.SignIn(request)) for _ in range(10)]
    assert {each.code for each in tried} == {grpc.StatusCode.UNAUTHENTICATED}
    _just_failed(sql)
    said = await refused(client.sessions.SignIn(request))
    assert said.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert said.reason == "SIGN_IN_DELAYED"
    assert "try again in 1 s" in said.text


async def test_signing_in_again_and_again_from_one_place_works(
    registry: Registry, database: Database
) -> None:
    await signed_in(registry, database, "ada")
    for _ in range(15):
        await again(registry, "ada")
