"""The runner's public RPCs, on the running process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.isolation.v1 import isolation_pb2
from qflow.runner.v1 import environment_service_pb2 as environments_pb
from qflow.runner.v1 import file_service_pb2 as files_pb
from qflow.runner.v1 import package_rule_service_pb2 as rules_pb
from qflow.runner.v1 import runner_service_pb2 as pb
from qflow.runner.v1 import wheel_service_pb2 as wheels_pb
from qflow.runner.v1.environment_service_pb2_grpc import EnvironmentServiceStub
from qflow.runner.v1.file_service_pb2_grpc import FileServiceStub
from qflow.runner.v1.package_rule_service_pb2_grpc import PackageRuleServiceStub
from qflow.runner.v1.runner_service_pb2_grpc import RunnerServiceStub
from qflow.runner.v1.wheel_service_pb2_grpc import WheelServiceStub

from services.kit.pythons import version_key
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


async def test_environments_are_prepared_ahead_and_shown(served: Served) -> None:
    """Each package shows as it is installed; and who asks again waits for the same build."""
    sql, owner = served.orchestra.sql, served.orchestra.owner
    node = factories.node(sql, owner, lock="pending")
    plain = factories.node(sql, owner)
    workflow = factories.workflow(
        sql, owner, nodes={"a": node, "b": plain}, edges=[], inputs=(), outputs=[]
    )
    request = environments_pb.PrepareEnvironmentRequest(
        node_id=str(node.id), wait=Duration(seconds=20)
    )
    async with served.channel(owner.token) as channel:
        stub = EnvironmentServiceStub(channel)
        early = await stub.PrepareEnvironment(request, timeout=30)
        assert early.complete
        assert "the dependencies are not resolved yet" == early.nodes[0].problem
        await _lock(served, node)
        answer = await stub.PrepareEnvironment(request, timeout=30)
        assert answer.complete
        [prepared] = answer.nodes
        assert (str(node.version_id), "") == (prepared.node_version_id, prepared.problem)
        found = prepared.environment
        assert (environments_pb.ENVIRONMENT_STATE_READY, 1) == (found.state, found.package_count)
        of_workflow = await stub.PrepareEnvironment(
            environments_pb.PrepareEnvironmentRequest(workflow_id=str(workflow)), timeout=30
        )
        by_version = {each.node_version_id: each for each in of_workflow.nodes}
        assert {str(node.version_id), str(plain.version_id)} == set(by_version)
        assert not by_version[str(plain.version_id)].HasField("environment")
        assert found.id == by_version[str(node.version_id)].environment.id
        described = await _described(stub, found.id)
        assert described.size_bytes > 0
        listed = await stub.ListEnvironments(environments_pb.ListEnvironmentsRequest())
        assert [found.id] == [each.id for each in listed.environments]
        bom = await stub.GetEnvironmentBom(
            environments_pb.GetEnvironmentBomRequest(environment_id=found.id)
        )
    assert {"python", "greeter"} == {
        each["name"] for each in json.loads(bom.bom_json)["components"]
    }
    rows: list[Any] = []
    async with asyncio.timeout(30):
        while [("greeter", "completed")] != rows:
            await asyncio.sleep(0.05)  # rows are written beside the work
            rows = sql.execute(
                "SELECT package_name, installation_status FROM container_dependencies"
            ).fetchall()


async def _lock(served: Served, node: factories.Node) -> None:
    token = factories.service_token(served.orchestra.sql, "registry", ["registry"])
    async with served.channel(token) as channel:
        lock = await EnvironmentServiceStub(channel).ResolveEnvironment(
            environments_pb.ResolveEnvironmentRequest(
                requirements=["greeter"],
                python_version="3.11",
                tenant_id=str(served.orchestra.owner.id),
            )
        )
    served.orchestra.sql.execute(
        "UPDATE node_version_locks SET state = 'locked', lock = %s, lock_digest = %s"
        " WHERE node_version_id = %s",
        (lock.lock, lock.lock_digest, node.version_id),
    )


async def _described(stub: Any, environment_id: str) -> Any:
    request = environments_pb.GetEnvironmentRequest(environment_id=environment_id)
    async with asyncio.timeout(30):
        while not (  # noqa: ASYNC110 - rows are written beside the work
            answer := await stub.GetEnvironment(request)
        ).environment.has_bom:
            await asyncio.sleep(0.05)
    return answer.environment


async def test_the_pythons_of_runners_are_listed(served: Served) -> None:
    async with served.channel(served.orchestra.owner.token) as channel:
        answer = await EnvironmentServiceStub(channel).ListPythons(
            environments_pb.ListPythonsRequest()
        )
    versions = [each.python_version for each in answer.pythons]
    assert "3.11" in versions
    assert versions == sorted(versions, key=version_key)
    for each in answer.pythons:
        assert 1 == each.runner_count
        assert each.full_version.startswith(f"{each.python_version}.")


async def test_a_wheel_is_uploaded_and_rules_are_set_over_the_wire(
    served: Served, tmp_path: Path
) -> None:
    data = make_wheel(tmp_path / "made", "mine", files={"mine.py": ""}).read_bytes()
    header = wheels_pb.WheelHeader(
        filename="mine-1.0-py3-none-any.whl",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    parts = [
        wheels_pb.UploadWheelRequest(header=header),
        wheels_pb.UploadWheelRequest(chunk=data[:100]),
        wheels_pb.UploadWheelRequest(chunk=data[100:]),
    ]
    rules = rules_pb.SetPackageRulesRequest(
        denied=["Evil", "numpy<2"], etag="0", request_id=str(uuid.uuid4())
    )
    async with served.channel(served.orchestra.owner.token) as channel:
        stub = WheelServiceStub(channel)
        stored = (await stub.UploadWheel(iter(parts))).wheel
        assert ("mine", "1.0") == (stored.name, stored.version)
        for wrong in ([], parts[1:]):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.UploadWheel(iter(wrong))
            assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
        request = wheels_pb.DeleteWheelRequest(wheel_id=stored.id, request_id=str(uuid.uuid4()))
        first = await stub.DeleteWheel(request)
        assert first == await stub.DeleteWheel(request)
        keeper = PackageRuleServiceStub(channel)
        before = await keeper.GetPackageRules(rules_pb.GetPackageRulesRequest())
        assert "0" == before.rules.etag
        written = await keeper.SetPackageRules(rules)
        assert ["evil", "numpy<2"] == list(written.rules.denied)
        assert written == await keeper.SetPackageRules(rules)
        rules.request_id = ""
        with pytest.raises(grpc.aio.AioRpcError) as changed:
            await keeper.SetPackageRules(rules)
    assert grpc.StatusCode.ABORTED == changed.value.code()
