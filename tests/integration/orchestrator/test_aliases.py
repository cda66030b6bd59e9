"""Starting by alias: the version is the one that the alias stands for when the run is committed."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import pytest
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_floating import details


def add_version(orchestra: Orchestra, workflow_id: str, version: int) -> None:
    """Give a workflow another version like its first."""
    orchestra.sql.execute(
        "INSERT INTO workflow_versions (workflow_id, version, name, nodes, connections, settings,"
        " input_types, output_types, python_version, created_by)"
        " SELECT workflow_id, %s, name, nodes, connections, settings, input_types, output_types,"
        " python_version, created_by FROM workflow_versions WHERE workflow_id = %s AND version = 1",
        (version, workflow_id),
    )
    orchestra.sql.execute("UPDATE workflows SET version = %s WHERE id = %s", (version, workflow_id))


def point(orchestra: Orchestra, workflow_id: str, version: int, alias: str = "prod") -> None:
    """Set an alias, as the registry does."""
    change, owner = uuid.uuid4(), orchestra.owner.id
    orchestra.sql.execute(
        "WITH change AS (INSERT INTO workflow_alias_changes (id, workflow_id, alias, kind,"
        " to_version, tenant_id, created_by) VALUES (%s, %s, %s, 'set', %s, %s, %s))"
        " INSERT INTO workflow_aliases (workflow_id, name, version, promotion_id, change_id,"
        " tenant_id, created_by) VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (workflow_id, name) DO UPDATE SET version = EXCLUDED.version",
        (
            *(change, workflow_id, alias, version, owner, owner),
            *(workflow_id, alias, version, change, change, owner, owner),
        ),
    )


async def test_a_run_takes_the_version_of_its_alias_and_says_which(
    orchestra: Orchestra, diamond: str
) -> None:
    add_version(orchestra, diamond, 2)
    point(orchestra, diamond, 1)
    request = pb.StartExecutionRequest(
        workflow_id=diamond, workflow_alias="prod", input_json='{"x":1}'
    )
    async with orchestra.running():
        first = (await orchestra.stub.StartExecution(request)).execution
        point(orchestra, diamond, 2)
        second = (await orchestra.stub.StartExecution(request)).execution
        request.workflow_alias = ""
        plain = (await orchestra.stub.StartExecution(request)).execution
    assert [1, 2, 2] == [each.workflow_version for each in (first, second, plain)]
    assert [(1,), (2,), (2,)] == orchestra.rows(
        "SELECT workflow_version FROM workflow_executions ORDER BY created_at"
    )


async def test_a_repeated_start_is_the_same_run_wherever_the_alias_went(
    orchestra: Orchestra, diamond: str
) -> None:
    """I12."""
    add_version(orchestra, diamond, 2)
    point(orchestra, diamond, 1)
    request = pb.StartExecutionRequest(
        workflow_id=diamond,
        workflow_alias="prod",
        input_json='{"x":1}',
        request_id=str(uuid.uuid4()),
    )
    async with orchestra.running():
        first = (await orchestra.stub.StartExecution(request)).execution
        point(orchestra, diamond, 2)
        again = (await orchestra.stub.StartExecution(request)).execution
        await orchestra.change("DELETE FROM workflow_aliases")
        gone = (await orchestra.stub.StartExecution(request)).execution
        request.workflow_alias, request.workflow_version = "", 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(request)
    assert first.id == again.id == gone.id
    assert grpc.StatusCode.ALREADY_EXISTS == refused.value.code()


async def test_an_unknown_alias_is_not_found_and_named(orchestra: Orchestra, diamond: str) -> None:
    other = factories.user(orchestra.sql)
    request = pb.StartExecutionRequest(workflow_id=diamond, workflow_alias="staging")
    async with orchestra.running():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(request)
        assert ("ALIAS_NOT_FOUND", ["workflow_alias"]) == details(refused.value)
        assert grpc.StatusCode.NOT_FOUND == refused.value.code()
        point(orchestra, diamond, 1, "staging")
        stub = type(orchestra.stub)(orchestra.channel(other.token))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.StartExecution(request)
        assert "WORKFLOW_NOT_FOUND" == details(refused.value)[0]


@pytest.mark.parametrize(("alias", "version"), [("prod", 1), ("Prod", 0), ("a" * 64, 0), ("1", 0)])
async def test_a_version_and_an_alias_or_no_alias_at_all_is_refused(
    orchestra: Orchestra, diamond: str, alias: str, version: int
) -> None:
    point(orchestra, diamond, 1)
    request = pb.StartExecutionRequest(
        workflow_id=diamond, workflow_alias=alias, workflow_version=version, input_json='{"x":1}'
    )
    async with orchestra.running():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(request)
    assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()


async def test_starts_that_race_with_promotions_take_what_the_alias_stands_for(
    orchestra: Orchestra, diamond: str
) -> None:
    """A start that begins after a promotion was answered never takes the version before it."""
    add_version(orchestra, diamond, 2)
    point(orchestra, diamond, 1)
    request = pb.StartExecutionRequest(
        workflow_id=diamond, workflow_alias="prod", input_json='{"x":1}'
    )
    async with orchestra.running():

        async def start() -> int:
            answer = await orchestra.stub.StartExecution(request)
            return answer.execution.workflow_version

        await start()  # the plan of version 1 is at hand
        for version in (2, 1, 2, 1):
            early = [asyncio.ensure_future(start()) for _ in range(20)]
            await asyncio.to_thread(point, orchestra, diamond, version)
            late = await asyncio.gather(*(start() for _ in range(20)))
            assert {version} == set(late)
            assert {1, 2} >= set(await asyncio.gather(*early))
    # What was answered is what was written.
    assert [(0,)] == orchestra.rows(
        "SELECT count(*) FROM workflow_executions run JOIN execution_pins pins"
        " ON pins.id = run.pins_id WHERE pins.workflow_version <> run.workflow_version"
    )


async def test_a_start_whose_alias_moved_before_its_flush_takes_the_new_version(
    orchestra: Orchestra, diamond: str
) -> None:
    """The look at the alias is a guess; the statement that writes the run holds it to that."""
    add_version(orchestra, diamond, 2)
    point(orchestra, diamond, 1)
    request = pb.StartExecutionRequest(
        workflow_id=diamond, workflow_alias="prod", input_json='{"x":1}'
    )
    async with orchestra.running():
        await orchestra.stub.StartExecution(request)
        # Whoever locks the runs' table holds back the flush before it sees anything.
        with orchestra.database.connect() as held, held.transaction():
            held.execute("LOCK TABLE workflow_executions IN ACCESS EXCLUSIVE MODE")
            started = asyncio.ensure_future(orchestra.stub.StartExecution(request))
            await until_locked(orchestra)
            point(orchestra, diamond, 2)
        answer = await started
    assert 2 == answer.execution.workflow_version
    assert [(1,), (2,)] == orchestra.rows(
        "SELECT workflow_version FROM workflow_executions ORDER BY created_at"
    )


async def until_locked(orchestra: Orchestra) -> None:
    """Return once a statement waits for the runs' table."""
    async with asyncio.timeout(30):
        while not orchestra.rows(  # noqa: ASYNC110 - another connection locks it
            "SELECT 1 FROM pg_locks WHERE relation = 'workflow_executions'::regclass"
            " AND NOT granted"
        ):
            await asyncio.sleep(0.01)
