"""Columns of a flush as the driver sends them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

import pytest

from services.kit.columns import flat
from services.kit.ids import uuid7
from services.kit.pg import open_pool
from tests.support.database import Database


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("uuid", [uuid7(), None, UUID(int=3), uuid7(), uuid7()]),
        ("bigint", [1, None, -3, 1 << 62, 0]),
        ("text", ["", None, "é", "{1,2}", '"']),
        ("boolean", [True, None, False, True, True]),
        ("timestamptz", [datetime(2026, 1, 1, tzinfo=UTC), None, None, None, None]),
    ],
)
async def test_a_column_arrives_as_it_was(
    database: Database, kind: LiteralString, values: list[Any]
) -> None:
    pool = await open_pool(database.url(), application_name="test")
    try:
        async with pool.acquire() as db:
            statement = await db.prepare(f"SELECT $1::{kind}[], array_ndims($1::{kind}[])")
            for _ in range(2):  # the same statement takes each anew
                assert (values, 1) == tuple(await statement.fetchrow(*flat([values])) or ())
    finally:
        await pool.close()
