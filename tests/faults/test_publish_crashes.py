"""CP24: kill -9 of the registry while a version is published, between its two rows and around the
commit.
"""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_pb2 as workflow
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc
from qflow.registry.v1.node_service_pb2_grpc import NodeServiceStub
from qflow.registry.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from services.kit.rpc.channel import open_channel
from tests import factories
from tests.support.database import Database
from tests.support.registry_process import Moment, RegistryProcess, Wire, sockets_of
from tests.support.suite_fixtures import discard

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


@dataclass(frozen=True, slots=True)
class Publishing:
    """A call that makes a version 2, and the tables that hold what it publishes."""

    stub: Callable[[grpc.aio.Channel], Any]
    request: Message
    shown: Callable[[Any], int]
    head: str
    versions: str
    of: str
    id: str

    async def call(self, process: RegistryProcess, user: factories.User, times: int) -> list[Any]:
        """Make the call as often; gives the answers."""
        async with open_channel(process.address, user.token) as channel:
            return [await self.stub(channel)(self.request, timeout=30) for _ in range(times)]

    def there(self, sql: psycopg.Connection) -> list[int]:
        """Give the versions there are, of which what is shown must be the last."""
        rows = sql.execute(
            f"SELECT v.version, h.version FROM {self.head} h"
            f" JOIN {self.versions} v ON v.{self.of} = h.id WHERE h.id = %s ORDER BY 1".encode(),
            (self.id,),
        ).fetchall()
        assert {rows[-1][0]} == {head for _, head in rows}
        return [version for version, _ in rows]


def _node(sql: psycopg.Connection, user: factories.User) -> Publishing:
    node_id = str(factories.node(sql, user).id)
    request = node_rpc.UpdateNodeRequest(
        node_id=node_id,
        code=SOURCE,
        main_function="f",
        update_mask=FieldMask(paths=["code", "main_function"]),
        request_id=str(uuid.uuid4()),
    )
    return Publishing(
        lambda channel: NodeServiceStub(channel).UpdateNode,
        request,
        lambda answer: int(answer.node.version),
        "python_nodes",
        "python_node_versions",
        "node_id",
        node_id,
    )


def _workflow(sql: psycopg.Connection, user: factories.User) -> Publishing:
    node = factories.node(sql, user)
    workflow_id = factories.workflow(
        sql,
        user,
        nodes={"a": node},
        edges=[("", "x", "a", "x")],
        outputs=[("result", "a")],
    )
    both = [workflow.WorkflowNode(id=place, node_id=str(node.id)) for place in ("a", "b")]
    definition = workflow.WorkflowDefinition(
        nodes=both,
        connections=[
            workflow.Connection(source_output="x", target_node="a", target_input="x"),
            workflow.Connection(
                source_node="a", source_output="result", target_node="b", target_input="x"
            ),
        ],
        inputs=[workflow.WorkflowInput(name="x")],
        outputs=[workflow.WorkflowOutput(name="result", source_node="b", source_output="result")],
    )
    request = workflow_rpc.UpdateWorkflowRequest(
        workflow_id=str(workflow_id),
        definition=definition,
        update_mask=FieldMask(paths=["definition"]),
        request_id=str(uuid.uuid4()),
    )
    return Publishing(
        lambda channel: WorkflowServiceStub(channel).UpdateWorkflow,
        request,
        lambda answer: int(answer.workflow.version),
        "workflows",
        "workflow_versions",
        "workflow_id",
        str(workflow_id),
    )


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("made", [_node, _workflow])
async def test_a_version_that_was_cut_off_is_wholly_there_or_not_at_all(
    process: RegistryProcess,
    wire: Wire,
    database: Database,
    moment: Moment,
    made: Callable[[psycopg.Connection, factories.User], Publishing],
) -> None:
    """CP24, I12, I17: and the same call made again with its key gives the one version there is."""
    with database.connect() as sql:
        user = factories.user(sql)
        publishing = made(sql, user)
        wire.arm(f"INSERT INTO {publishing.versions}".encode(), moment)
        async with open_channel(process.address, user.token) as channel:
            calling = publishing.stub(channel)(publishing.request, timeout=30)
            await process.killed_in(wire, calling)
        there = moment == "after the commit"
        assert [1, 2][: 1 + there] == publishing.there(sql)

        await process.start()
        first, again = await publishing.call(process, user, 2)
        assert 2 == publishing.shown(first)
        assert first == again
        assert [1, 2] == publishing.there(sql)
