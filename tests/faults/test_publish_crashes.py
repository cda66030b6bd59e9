"""CP24: kill -9 of the registry while a version is published, between its two rows and around the
commit.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_service_pb2 as rpc
from qflow.registry.v1.node_service_pb2_grpc import NodeServiceStub

from services.kit.rpc.channel import open_channel
from tests import factories
from tests.support.database import Database
from tests.support.registry_process import Moment, RegistryProcess, Wire, sockets_of
from tests.support.suite_fixtures import discard

pytestmark = [pytest.mark.timeout(120)]

MOMENTS: tuple[Moment, ...] = ("before the statement", "before the commit", "after the commit")
SOURCE = "def f(x: int) -> int:\n    return x\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="qfw-", dir="/tmp"))
    yield made
    discard(made)


@pytest.fixture
async def wire(database: Database, folder: Path) -> AsyncIterator[Wire]:
    made = Wire(f"{sockets_of(database)}/.s.PGSQL.5432")
    server = await asyncio.start_unix_server(made.carry, str(folder / ".s.PGSQL.5432"))
    yield made
    server.close()


@pytest.fixture
async def process(
    database: Database,
    wire: Wire,  # it listens before anything connects
    folder: Path,
) -> AsyncIterator[RegistryProcess]:
    made = RegistryProcess(database, folder, login="qflow_registry")
    await made.start()
    yield made
    await made.kill()


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_version_that_was_cut_off_is_wholly_there_or_not_at_all(
    process: RegistryProcess, wire: Wire, database: Database, moment: Moment
) -> None:
    """CP24, I12, I17: and the same call made again with its key gives the one version there is."""
    with database.connect() as sql:
        user = factories.user(sql)
        node_id = str(factories.node(sql, user).id)
        request = rpc.UpdateNodeRequest(
            node_id=node_id,
            code=SOURCE,
            main_function="f",
            update_mask=FieldMask(paths=["code", "main_function"]),
            request_id=str(uuid.uuid4()),
        )
        wire.arm(b"INSERT INTO python_node_versions", moment)
        async with open_channel(process.address, user.token) as channel:
            await process.killed_in(wire, _update(channel)(request, timeout=30))
        there = moment == "after the commit"
        assert [1, 2][: 1 + there] == _versions(sql, node_id)

        await process.start()
        async with open_channel(process.address, user.token) as channel:
            first = await _update(channel)(request, timeout=30)
            assert 2 == first.node.version
            assert first == await _update(channel)(request, timeout=30)
        assert [1, 2] == _versions(sql, node_id)


def _update(channel: grpc.aio.Channel) -> Any:
    return NodeServiceStub(channel).UpdateNode


def _versions(sql: psycopg.Connection, node_id: str) -> list[int]:
    """Give the versions there are, of which what the node shows must be the last."""
    rows = sql.execute(
        "SELECT v.version, h.version"
        "  FROM python_nodes h JOIN python_node_versions v ON v.node_id = h.id"
        " WHERE h.id = %s ORDER BY 1",
        (node_id,),
    ).fetchall()
    assert {rows[-1][0]} == {head for _, head in rows}
    return [version for version, _ in rows]
