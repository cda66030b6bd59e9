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

import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc
from qflow.registry.v1.node_service_pb2_grpc import NodeServiceStub
from qflow.registry.v1.workflow_service_pb2_grpc import WorkflowServiceStub

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
@pytest.mark.parametrize("kind", ["node", "workflow"])
async def test_a_version_that_was_cut_off_is_wholly_there_or_not_at_all(
    process: RegistryProcess, wire: Wire, database: Database, kind: str, moment: Moment
) -> None:
    """CP24, I12, I17: and the same call made again with its key gives the one version there is."""
    with database.connect() as sql:
        user = factories.user(sql)
        node = factories.node(sql, user)
        workflow_id = factories.workflow(
            sql, user, nodes={"a": node}, edges=[("", "x", "a", "x")], outputs=[("y", "a")]
        )
        ids = {"node": str(node.id), "workflow": str(workflow_id)}
        request = _change(kind, ids[kind], str(node.id))
        table = "python_node_versions" if kind == "node" else "workflow_versions"
        wire.arm(f"INSERT INTO {table}".encode(), moment)
        async with open_channel(process.address, user.token) as channel:
            await process.killed_in(wire, _call(channel, kind)(request, timeout=30))
        there = moment == "after the commit"
        assert [1, 2][: 1 + there] == _versions(sql, kind, ids[kind])

        await process.start()
        async with open_channel(process.address, user.token) as channel:
            call = _call(channel, kind)
            first = await call(request, timeout=30)
            assert 2 == getattr(first, kind).version
            assert first == await call(request, timeout=30)
        assert [1, 2] == _versions(sql, kind, ids[kind])


def _change(kind: str, its_id: str, node_id: str) -> Any:
    key = str(uuid.uuid4())
    if kind == "node":
        return node_rpc.UpdateNodeRequest(
            node_id=its_id,
            code=SOURCE,
            main_function="f",
            update_mask=FieldMask(paths=["code", "main_function"]),
            request_id=key,
        )
    return workflow_rpc.UpdateWorkflowRequest(
        workflow_id=its_id,
        definition=workflow_pb2.WorkflowDefinition(
            nodes=[
                workflow_pb2.WorkflowNode(
                    id="a",
                    node_id=node_id,
                    literals=[workflow_pb2.LiteralInput(input="x", value_json="1")],
                )
            ]
        ),
        update_mask=FieldMask(paths=["definition"]),
        request_id=key,
    )


def _call(channel: Any, kind: str) -> Any:
    if kind == "node":
        return NodeServiceStub(channel).UpdateNode
    return WorkflowServiceStub(channel).UpdateWorkflow


def _versions(sql: psycopg.Connection, kind: str, its_id: str) -> list[int]:
    """Give the versions there are, of which what the head shows must be the last."""
    table, key = ("python_node", "node_id") if kind == "node" else ("workflow", "workflow_id")
    rows = sql.execute(
        f"SELECT v.version, h.version FROM {table}s h JOIN {table}_versions v ON v.{key} = h.id"
        " WHERE h.id = %s ORDER BY 1".encode(),
        (its_id,),
    ).fetchall()
    assert {rows[-1][0]} == {head for _, head in rows}
    return [version for version, _ in rows]
