"""Definitions read through the cache: fast where it is well, right whatever becomes of it."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as pb
from redis.asyncio import Redis as Driver

from services.kit.cache import Cache
from services.registry.gateways.definition_cache import DefinitionCache
from services.registry.rpc.fresh import AGE_MAX_S
from services.standalone.redis import Redis
from tests import factories
from tests.integration.registry.conftest import (
    Client,
    Registry,
    Resolver,
    change_rows,
    place,
    refused,
    running_registry,
)
from tests.support.database import Database

# What is stale is gone everywhere after this.
STALE_MAX_S = 5.0
CODE = "def f(x: int = 0) -> int:\n    return x\n"


@pytest.fixture
async def registry(
    database: Database, resolver: Resolver, redis_server: Redis
) -> AsyncIterator[Registry]:
    """The registry with a Redis of its own."""
    async with running_registry(database, resolver, QFLOW_REDIS_URL=redis_server.url) as running:
        yield running
    if redis_server.child is not None:  # stopped by the test, and begun anew for the next
        redis_server.child.send_signal(signal.SIGCONT)
        redis_server.command("CONFIG SET maxmemory 0")


async def _made(client: Client) -> tuple[str, str]:
    node = await client.node(CODE)
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place(f"n{i}", on=node, literals={"x": f"{i}"}) for i in range(3)]
    )
    made = await client.workflows.CreateWorkflow(
        pb.CreateWorkflowRequest(name="w", definition=definition)
    )
    return node.id, made.workflow.id


async def _forget(client: Client) -> None:
    """Make the process forget what it told the tenant: the next read goes to the cache."""
    await refused(
        client.workflows.DeactivateWorkflow(
            pb.DeactivateWorkflowRequest(workflow_id=str(uuid.uuid4()))
        )
    )


async def _read(client: Client, ids: tuple[str, str]) -> tuple[Any, Any]:
    await _forget(client)
    node = await client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=ids[0]))
    workflow = await client.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=ids[1]))
    return node, workflow


async def test_parts_that_never_change_are_kept_and_come_back_the_same(
    client: Client, redis_server: Redis, sql: psycopg.Connection
) -> None:
    ids = await _made(client)
    first = await _read(client, ids)
    # What Redis did not answer in time is read from the rows, and kept by the next reader.
    async with asyncio.timeout(30):
        while redis_server.command("DBSIZE") != ":2":
            assert first == await _read(client, ids)
    # Proof that they come from there: the rows hold something else now.
    await change_rows(sql, "ALTER TABLE python_node_versions DISABLE TRIGGER USER")
    await change_rows(sql, "UPDATE python_node_versions SET code = 'other'")
    async with asyncio.timeout(30):
        while first != await _read(client, ids):
            assert redis_server.command("DBSIZE") == ":2"
    assert first[0].node.code == CODE
    redis_server.command("FLUSHALL")
    assert (await _read(client, ids))[0].node.code == "other"


async def _flush(redis: Redis) -> None:
    redis.command("FLUSHALL")


async def _spoil(redis: Redis) -> None:
    async with Driver.from_url(redis.url) as driver:
        for at, key in enumerate(await driver.keys("qflow:*")):
            sealed = await driver.get(key)
            assert isinstance(sealed, bytes)
            spoilt = [b"", b"x" * 500, sealed[:40], sealed[:-1] + b"!", b"\0" + sealed]
            await driver.set(key, spoilt[at % len(spoilt)])


async def _mistype(redis: Redis) -> None:
    async with Driver.from_url(redis.url) as driver:
        for key in await driver.keys("qflow:*"):
            await driver.delete(key)
            await driver.rpush(key, "x")


async def _swap(redis: Redis) -> None:
    """Put values that were sealed rightly under each other's names."""
    async with Driver.from_url(redis.url) as driver:
        first, second = sorted(await driver.keys("qflow:*"))
        await driver.rename(first, "between")
        await driver.rename(second, first)
        await driver.rename("between", second)


async def _fill(redis: Redis) -> None:
    redis.command("FLUSHALL")
    redis.command("CONFIG SET maxmemory 1")


async def _freeze(redis: Redis) -> None:
    assert redis.child is not None
    redis.child.send_signal(signal.SIGSTOP)


async def _stop(redis: Redis) -> None:
    redis.stop()


@pytest.mark.parametrize("harm", [_flush, _spoil, _mistype, _swap, _fill, _freeze, _stop])
async def test_whatever_becomes_of_redis_answers_are_right_and_in_time(
    client: Client, redis_server: Redis, harm: Callable[[Redis], Awaitable[None]]
) -> None:
    """F21, F20, CP30."""
    ids = await _made(client)
    before = await _read(client, ids)
    async with asyncio.timeout(30):  # what took too long is not kept: the next reader keeps it
        while int(redis_server.command("DBSIZE")[1:]) < 2:
            before = await _read(client, ids)
    # For as long as the test lasts: whoever waited for Redis would not come to an end.
    await harm(redis_server)
    for _ in range(5):
        assert before == await _read(client, ids)


async def test_what_is_kept_lets_nobody_in(
    client: Client, registry: Registry, redis_server: Redis, sql: psycopg.Connection
) -> None:
    """X14: a node that is not public any more is gone, though its code is in the cache."""
    node_id, _ = await _made(client)
    other = registry.client(factories.user(sql).token)
    await change_rows(sql, "UPDATE python_nodes SET is_public = true")
    request = node_rpc.GetNodeRequest(node_id=node_id)
    assert (await other.nodes.GetNode(request)).node.code == CODE
    async with asyncio.timeout(30):  # what took too long is not kept: the next reader keeps it
        while redis_server.command("DBSIZE") != ":1":
            await _forget(other)
            await other.nodes.GetNode(request)
    await change_rows(sql, "UPDATE python_nodes SET is_public = false")
    await _forget(other)
    assert (await refused(other.nodes.GetNode(request))).code == grpc.StatusCode.NOT_FOUND


async def _old_until(is_new: Callable[[], Awaitable[Any]]) -> float:
    """Give how long after now a read that still told what is old began, however long it took."""
    changed_at = began = time.monotonic()
    while not await is_new():
        began = time.monotonic()
    return began - changed_at


async def test_what_is_deleted_elsewhere_is_seen_within_five_seconds_also_without_redis(
    client: Client, registry: Registry, redis_server: Redis, sql: psycopg.Connection
) -> None:
    assert AGE_MAX_S < STALE_MAX_S
    node_id, workflow_id = await _made(client)
    await _read(client, (node_id, workflow_id))
    redis_server.stop()
    await change_rows(sql, "UPDATE python_nodes SET deleted_at = now()")
    await change_rows(sql, "UPDATE workflows SET deleted_at = now(), is_active = false")
    node, workflow = (
        node_rpc.GetNodeRequest(node_id=node_id),
        pb.GetWorkflowRequest(workflow_id=workflow_id),
    )

    async def node_is_gone() -> Any:
        return (await client.nodes.GetNode(node)).node.HasField("delete_time")

    async def workflow_is_gone() -> Any:
        found = await client.workflows.GetWorkflow(workflow)
        return found.workflow.HasField("delete_time")

    spans = await asyncio.gather(_old_until(node_is_gone), _old_until(workflow_is_gone))
    assert max(spans) < STALE_MAX_S


async def test_a_change_is_seen_at_once_where_it_was_made_and_soon_elsewhere(
    client: Client,
    user: factories.User,
    database: Database,
    resolver: Resolver,
    redis_server: Redis,
) -> None:
    _, workflow_id = await _made(client)
    request = pb.GetWorkflowRequest(workflow_id=workflow_id)
    async with running_registry(database, resolver, QFLOW_REDIS_URL=redis_server.url) as replica:
        elsewhere = replica.client(user.token)
        for reader in (client, elsewhere):
            assert (await reader.workflows.GetWorkflow(request)).workflow.name == "w"
        await client.workflows.UpdateWorkflow(
            pb.UpdateWorkflowRequest(
                workflow_id=workflow_id, name="new", update_mask=FieldMask(paths=["name"])
            )
        )
        assert (await client.workflows.GetWorkflow(request)).workflow.name == "new"

        async def is_new() -> Any:
            return (await elsewhere.workflows.GetWorkflow(request)).workflow.name == "new"

        assert await _old_until(is_new) < STALE_MAX_S


async def test_replicas_with_one_secret_share_what_is_kept_and_others_do_not(
    redis_url: str,
) -> None:
    asked: list[str] = []
    what = uuid.uuid4()

    async def value(secret: str, loaded: str) -> str:
        async def load() -> str:
            asked.append(loaded)
            return loaded

        cache = Cache(redis_url, timeout_s=10)  # on a busy machine too it is no miss
        try:
            return await DefinitionCache(cache, secret).through(
                "code", what, 1, tenant_id=what, load=load
            )
        finally:
            await cache.close()

    assert "first" == await value("secret", "first")
    assert "first" == await value("secret", "second")
    assert "third" == await value("another", "third")
    assert "fourth" == await value("", "fourth")
    assert ["first", "third", "fourth"] == asked
