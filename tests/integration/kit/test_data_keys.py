"""Data keys: made once, learnt by all before they are used, wrapped anew under a new root key."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from services.kit.data_keys import KeyRing
from services.kit.env import EnvError
from services.kit.pg import Pool, open_pool
from services.kit.root_keys import LocalKeys
from services.kit.sealed_data import DataKeys
from tests.support.database import Database

_K1, _K2 = (f"k{at}:{base64.b64encode(bytes([at]) * 32).decode()}" for at in (1, 2))


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    url = database.url("qflow_orchestrator_engine")
    pool = await open_pool(url, application_name="t", size_max=4)
    yield pool
    await pool.close()


def ring(pool: Pool, *roots: str, makes: bool = True) -> KeyRing:
    parsed = LocalKeys.parse("\n".join(roots), setting="test")
    return KeyRing(pool, parsed, DataKeys(), makes=makes, rewraps=makes)


def age(database: Database, key_id: UUID, seconds: float) -> None:
    with database.connect() as sql:
        sql.execute(
            "UPDATE data_keys SET created_at = clock_timestamp() - %s * interval '1 second'"
            " WHERE id = %s",
            (seconds, key_id),
        )


async def test_those_who_begin_at_once_make_one_key_and_read_each_other(pool: Pool) -> None:
    rings = [ring(pool, _K1) for _ in range(6)]
    await asyncio.gather(*(each.begin() for each in rings))
    assert 1 == len({each.keys.current()[0] for each in rings})
    assert '{"a":1}' == rings[1].keys.open(rings[0].keys.seal('{"a":1}'))
    reader = ring(pool, _K1, makes=False)
    await reader.begin()
    assert "{}" == reader.keys.open(rings[0].keys.seal("{}"))


async def test_a_new_key_is_used_once_all_have_learnt_it(pool: Pool, database: Database) -> None:
    """After 30 days; for a minute the one before goes on."""
    one, other = ring(pool, _K1), ring(pool, _K1, makes=False)
    await one.begin()
    first = one.keys.current()[0]
    await other.begin()
    age(database, first, 31 * 86_400)
    await one.look()
    assert first == one.keys.current()[0]
    with database.connect() as sql:
        [(second,)] = sql.execute("SELECT id FROM data_keys WHERE id <> %s", (first,)).fetchall()
    await other.look()
    age(database, second, 61)
    await one.look()
    assert second == one.keys.current()[0]
    # The other has not looked since, and reads it all the same.
    assert first == other.keys.current()[0]
    assert "{}" == other.keys.open(one.keys.seal("{}"))
    await one.look()
    with database.connect() as sql:
        assert [(2,)] == sql.execute("SELECT count(*) FROM data_keys").fetchall()


async def test_a_new_root_key_wraps_them_anew_and_what_is_sealed_stays(
    pool: Pool, database: Database
) -> None:
    before = ring(pool, _K1)
    await before.begin()
    sealed = before.keys.seal('{"a":1}')
    after = ring(pool, _K2, _K1)
    await after.begin()
    with database.connect() as sql:
        assert [("k2",)] == sql.execute("SELECT key_id FROM data_keys").fetchall()
    alone = ring(pool, _K2)
    await alone.begin()
    assert '{"a":1}' == alone.keys.open(sealed)
    # Who knows the old root key alone goes on with what it has learnt, and begins no more.
    assert '{"a":1}' == before.keys.open(sealed)
    with pytest.raises(EnvError, match="QFLOW_DATA_KEY_FILE"):
        await ring(pool, _K1).begin()
