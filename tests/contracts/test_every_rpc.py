"""Every RPC of the running suite, found by reflection: who is let in, on every kind of call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from qflow.auth.v1 import auth_pb2

from services.kit.rpc.reflection import V1, V1ALPHA
from tests.support.suite import Suite

pytestmark = [pytest.mark.timeout(120)]
SERVICES = ("registry", "orchestrator", "runner", "telemetry")
OPEN = {"grpc.health.v1.Health", V1, V1ALPHA}


@dataclass(frozen=True)
class Rpc:
    """One RPC as reflection tells of it."""

    address: str
    path: str
    kind: str
    rule: auth_pb2.AuthRule


def listeners(suite: Suite) -> dict[str, str]:
    """Every address of the suite, the one for runners too."""
    endpoints = suite.endpoints
    assert {*SERVICES, "attach"} == set(endpoints)
    return endpoints


async def every_rpc(suite: Suite, version: str = V1) -> list[Rpc]:
    return [rpc for address in listeners(suite).values() async for rpc in _rpcs(address, version)]


async def _rpcs(address: str, version: str) -> AsyncIterator[Rpc]:
    async with reflected(address, version) as ask:
        listed = await ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {each.name for each in listed.list_services_response.service}
        assert names >= OPEN
        for name in sorted(names - OPEN):
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
            answer = (await ask(request)).file_descriptor_response
            files = [FileDescriptorProto.FromString(raw) for raw in answer.file_descriptor_proto]
            for rpc in _described(files, name, address):
                yield rpc


def _described(files: list[FileDescriptorProto], name: str, address: str) -> Iterator[Rpc]:
    for file in files:
        for service in file.service:
            if f"{file.package}.{service.name}" == name:
                for method in service.method:
                    kind = "_".join(
                        "stream" if streams else "unary"
                        for streams in (method.client_streaming, method.server_streaming)
                    )
                    rule = method.options.Extensions[auth_pb2.rule]
                    yield Rpc(address, f"/{name}/{method.name}", kind, rule)


@asynccontextmanager
async def reflected(address: str, version: str) -> AsyncIterator[Any]:
    """Ask a server about itself, without a token."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(
            f"/{version}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(timeout=20)

        async def ask(request: reflection_pb2.ServerReflectionRequest) -> Any:
            await call.write(request)
            return await call.read()

        yield ask
        await call.done_writing()


async def code_of(rpc: Rpc, token: str | None) -> grpc.StatusCode:
    """Call an RPC with an empty request and tell how that ended."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    async with grpc.aio.insecure_channel(rpc.address) as channel:
        multi: Any = getattr(channel, rpc.kind)(rpc.path)
        # A stream is refused before its first message; writing one meanwhile may be told as the
        # client library's own INTERNAL ("Internal error from Core"), which no server said.
        requests = () if rpc.kind.startswith("stream") else (b"",)
        call = multi(*requests, metadata=metadata, timeout=20)
        try:
            if rpc.kind.endswith("unary"):
                await call
            else:
                await call.read()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def codes(rpcs: list[Rpc], token: str | None) -> dict[str, grpc.StatusCode]:
    found = await asyncio.gather(*(code_of(rpc, token) for rpc in rpcs))
    return {rpc.path: code for rpc, code in zip(rpcs, found, strict=True)}


async def test_reflection_lists_the_same_rpcs_under_both_names(suite: Suite) -> None:
    rpcs = await every_rpc(suite)
    assert rpcs == await every_rpc(suite, V1ALPHA)
    packages = {rpc.path.split("/")[1].rsplit(".", 1)[0] for rpc in rpcs}
    assert {f"qflow.{name}.v1" for name in SERVICES} == packages
    assert len({rpc.path for rpc in rpcs}) == len(rpcs)


async def test_every_rpc_of_the_contract_is_served(
    suite: Suite, contract: list[FileDescriptorProto]
) -> None:
    promised = {
        f"/{file.package}.{service.name}/{method.name}"
        for file in contract
        for service in file.service
        for method in service.method
    }
    assert promised == {rpc.path for rpc in await every_rpc(suite)}


@pytest.mark.parametrize("token", ["bogus", "qf_" + "a" * 43, "", None])
async def test_a_wrong_token_gets_unauthenticated_from_every_rpc(
    suite: Suite, token: str | None
) -> None:
    """X1, X2, X7."""
    guarded = [
        rpc for rpc in await every_rpc(suite) if rpc.rule.audience != auth_pb2.AUDIENCE_ANONYMOUS
    ]
    assert {"unary_unary", "unary_stream", "stream_stream"} <= {rpc.kind for rpc in guarded}
    expected = dict.fromkeys((rpc.path for rpc in guarded), grpc.StatusCode.UNAUTHENTICATED)
    assert expected == await codes(guarded, token)


async def test_an_anonymous_rpc_answers_without_a_token(suite: Suite) -> None:
    open_rpcs = [
        rpc for rpc in await every_rpc(suite) if rpc.rule.audience == auth_pb2.AUDIENCE_ANONYMOUS
    ]
    assert {
        "/qflow.registry.v1.SessionService/SignIn": grpc.StatusCode.INVALID_ARGUMENT
    } == await codes(open_rpcs, None)


async def test_services_and_users_are_not_let_in_at_each_others_doors(suite: Suite) -> None:
    """X17: the runner's token at what is for users, the owner's at what is for services."""
    rpcs = await every_rpc(suite)
    runner_token = (suite.home.secrets / "runner.token").read_text("utf-8").strip()
    for audience, token in (
        (auth_pb2.AUDIENCE_USER, runner_token),
        (auth_pb2.AUDIENCE_SERVICE, suite.owner_token),
    ):
        meant = [rpc for rpc in rpcs if rpc.rule.audience == audience]
        expected = dict.fromkeys((rpc.path for rpc in meant), grpc.StatusCode.PERMISSION_DENIED)
        assert meant
        assert expected == await codes(meant, token)


async def test_health_is_told_to_anybody(suite: Suite) -> None:
    for name, address in listeners(suite).items():
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            service = "" if name == "attach" else f"qflow.{name}"
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert health_pb2.HealthCheckResponse.SERVING == answer.status
