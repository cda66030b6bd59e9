"""The runner's public RPCs, on the running process."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from qflow.isolation.v1 import isolation_pb2
from qflow.runner.v1 import environment_service_pb2 as environments_pb
from qflow.runner.v1 import file_service_pb2 as files_pb
from qflow.runner.v1 import runner_service_pb2 as pb
from qflow.runner.v1.environment_service_pb2_grpc import EnvironmentServiceStub
from qflow.runner.v1.file_service_pb2_grpc import FileServiceStub
from qflow.runner.v1.runner_service_pb2_grpc import RunnerServiceStub

from services.kit.rpc.channel import open_channel
from services.runner.gateways.file_store import FileStore
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import runner_of
from tests.integration.runner.wheels import make_wheel

__all__ = ["orchestra"]


class Served:
    """A runner with its address."""

    def __init__(self, address: str, orchestra: Orchestra, pid: int) -> None:
        self.address = address
        self.pid = pid
        self.orchestra = orchestra

    def channel(self, token: str) -> grpc.aio.Channel:
        return open_channel(self.address, token)


@pytest.fixture
async def served(orchestra: Orchestra, tmp_path: Path) -> AsyncIterator[Served]:
    index = tmp_path / "index"
    make_wheel(index, "greeter", files={"greeter.py": ""})
    orchestra.attach_address = f"unix:{tmp_path}/nobody.sock"
    runner = runner_of(
        orchestra, UV_OFFLINE="1", UV_FIND_LINKS=str(index), PIP_FIND_LINKS=""
    ).start()
    try:
        await runner.until_said("service_started")
        line = next(each for each in runner.said().splitlines() if "service_started" in each)
        yield Served(json.loads(line)["addresses"][0], orchestra, runner.pid)
    finally:
        await runner.stop()


async def test_a_runner_says_what_it_proved(served: Served) -> None:
    """E15: the tier is probed and told."""
    async with served.channel(served.orchestra.owner.token) as channel:
        answer = await RunnerServiceStub(channel).GetRunner(pb.GetRunnerRequest())
    runner = answer.runner
    assert isolation_pb2.TIER_T2 == runner.tier
    assert 4 == runner.slots
    assert "3.11" in runner.pythons
    assert "other processes" in {check.name for check in runner.checks}
    assert [] == [check for check in runner.checks if not check.held]


async def test_sandboxes_are_listed_for_their_tenant_alone(served: Served) -> None:
    """X13."""
    sql, owner = served.orchestra.sql, served.orchestra.owner
    stranger = factories.user(sql)
    for at in range(3):
        sql.execute(
            "INSERT INTO containers (container_id, python_version, status, tenant_id, created_by,"
            " resource_limits, resource_usage, created_at) VALUES (%s, '3.11', 'stopped', %s, %s,"
            ' \'{"isolation":"T2"}\', \'{"attempts":5,"cpu_us":1500}\','
            " now() - %s * interval '1 hour')",
            (f"proc:{uuid.uuid4()}", owner.id, owner.id, at),
        )
    async with served.channel(owner.token) as channel:
        stub = RunnerServiceStub(channel)
        first = await stub.ListContainers(pb.ListContainersRequest(page_size=2))
        rest = await stub.ListContainers(
            pb.ListContainersRequest(page_size=2, page_token=first.next_page_token)
        )
        with pytest.raises(grpc.aio.AioRpcError) as forged:
            await stub.ListContainers(pb.ListContainersRequest(page_token="forged"))
    assert [2, 1] == [len(first.containers), len(rest.containers)]
    assert "" == rest.next_page_token
    shown = first.containers[0]
    assert (isolation_pb2.TIER_T2, 5) == (shown.tier, shown.attempts)
    assert 1500 == shown.cpu_time.ToMicroseconds()
    assert grpc.StatusCode.INVALID_ARGUMENT == forged.value.code()
    async with served.channel(stranger.token) as channel:
        answer = await RunnerServiceStub(channel).ListContainers(pb.ListContainersRequest())
    assert 0 == len(answer.containers)


async def test_a_file_is_given_whole_or_not_at_all(served: Served) -> None:
    """F42, B68, B74, X14: proven bytes, ranges, and nothing to strangers."""
    orchestra = served.orchestra
    owner = orchestra.owner
    store = FileStore(orchestra.home / "files")
    file_id = uuid.uuid4()
    content = b"0123456789" * 50_000
    size, sha256 = store.write(tenant_id=owner.id, file_id=file_id, parts=[content])
    key = f"{owner.id}/{file_id}"
    orchestra.sql.execute(
        "INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes,"
        " mime_type, hash_sha256, tenant_id, created_by)"
        " VALUES (%s, 'a.json', 'a.json', %s, %s, 'application/json', %s, %s, %s)",
        (file_id, key, size, sha256, owner.id, owner.id),
    )

    async def download(token: str, **range_: int) -> bytes:
        async with served.channel(token) as channel:
            request = files_pb.DownloadFileRequest(file_id=str(file_id), **range_)
            parts = [part async for part in FileServiceStub(channel).DownloadFile(request)]
        assert size == parts[0].file.size_bytes
        return b"".join(part.chunk for part in parts[1:])

    async def refused(token: str, **range_: int) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await download(token, **range_)
        return caught.value.code()

    assert content == await download(owner.token)
    assert b"56789" == await download(owner.token, offset_bytes=5, limit_bytes=5)
    assert b"" == await download(owner.token, offset_bytes=size)
    assert grpc.StatusCode.OUT_OF_RANGE == await refused(owner.token, offset_bytes=size + 1)
    assert grpc.StatusCode.OUT_OF_RANGE == await refused(owner.token, offset_bytes=-1)
    stranger = factories.user(orchestra.sql)
    assert grpc.StatusCode.NOT_FOUND == await refused(stranger.token)
    path = orchestra.home / "files" / key
    path.write_bytes(b"x" + content[1:])
    assert grpc.StatusCode.DATA_LOSS == await refused(owner.token)


async def test_only_the_registry_resolves(served: Served) -> None:
    """X9, X47."""
    request = environments_pb.ResolveEnvironmentRequest(
        requirements=["greeter"], python_version="3.11", tenant_id=str(uuid.uuid4())
    )
    token = factories.service_token(served.orchestra.sql, "registry", ["registry"])
    async with served.channel(token) as channel:
        answer = await EnvironmentServiceStub(channel).ResolveEnvironment(request)
    assert answer.lock.startswith("greeter==1.0 ")
    assert 64 == len(answer.lock_digest)
    for other in (served.orchestra.owner.token, served.orchestra.runner_token):
        async with served.channel(other) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await EnvironmentServiceStub(channel).ResolveEnvironment(request)
        assert grpc.StatusCode.PERMISSION_DENIED == refused.value.code()
