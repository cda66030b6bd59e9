"""Connections that abuse the protocol below any call: the one that does is ended, others go on."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.integration.kit.conftest import USER, Service
from tests.integration.kit.test_kit_wire import SERVICE

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS = 1, 4
_ENHANCE_YOUR_CALM = 11


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def header(name: str, value: str) -> bytes:
    """HPACK, literal and not to be remembered."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


def call_headers(token: str) -> bytes:
    return b"".join(
        header(name, value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"{SERVICE}/Chat"),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", f"Bearer {token}"),
        )
    )


@asynccontextmanager
async def raw(
    service: Service,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = service.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(_PREFACE + frame(_SETTINGS))
        yield reader, writer
    finally:
        writer.close()


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """What the server says, to the end of the connection."""
    while True:
        try:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        yield head[3], payload


async def told_to_go(reader: asyncio.StreamReader) -> int:
    """The reason for which the server ends the connection."""
    async with asyncio.timeout(30):
        async for kind, payload in frames(reader):
            if kind == _GOAWAY:
                return int.from_bytes(payload[4:8])
    raise AssertionError("the connection ended without a word")


async def answers(service: Service) -> bool:
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        return bool((await stub.Say(service.pb.Note(text="x"), timeout=10)).text == "x")


async def test_who_floods_with_pings_is_told_to_calm_down_and_others_are_served(
    service: Service,
) -> None:
    """X50."""
    async with raw(service) as (reader, writer):
        writer.write(frame(_PING, b"\0" * 8) * 100)
        assert _ENHANCE_YOUR_CALM == await told_to_go(reader)
    assert await answers(service)


async def test_a_storm_of_streams_that_are_taken_back_harms_nobody(service: Service) -> None:
    """X50: 5,000 calls that are begun and reset at once; no more of them run than are open."""
    headers = call_headers(USER)
    async with raw(service) as (reader, writer):
        swallowing = asyncio.create_task(swallow(reader))
        for number in range(5_000):
            stream = 2 * number + 1
            writer.write(frame(_HEADERS, headers, flags=_END_HEADERS, stream=stream))
            writer.write(frame(_RST_STREAM, struct.pack(">I", 8), stream=stream))
            if number % 500 == 0:
                assert await answers(service)
                if writer.is_closing():
                    break
        await swallowing if writer.is_closing() else swallowing.cancel()
    assert await answers(service)


@pytest.mark.parametrize("service", [{"concurrent_max": 2_000}], indirect=True)
async def test_calls_that_come_while_the_server_is_busy_are_answered_each(
    service: Service,
) -> None:
    """B14: 3,500 at once while the loop does not look; none is dropped as if it were cancelled."""
    calls, host, port = 3_500, *service.server.address.rsplit(":", 1)
    opening = frame(_HEADERS, call_headers("nobody"), flags=_END_HEADERS, stream=1)
    with socket.create_connection((host, int(port)), timeout=30) as client:
        # Not awaited: it is this loop that the server's calls wait for.
        client.sendall(_PREFACE + frame(_SETTINGS))
        for number in range(calls):
            client.sendall(opening[:5] + struct.pack(">I", 2 * number + 1) + opening[9:])
        client.sendall(frame(_PING, b"all read"))
        said = b""
        while frame(_PING, b"all read", flags=1) not in said:
            said += client.recv(65_536)
        client.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=client)
        ended: dict[int, int] = {}
        async with asyncio.timeout(60):
            while len(ended) < calls:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3]))
                if head[3] == _RST_STREAM:
                    ended.setdefault(int.from_bytes(head[5:]), int.from_bytes(payload))
                elif head[3] == _HEADERS and head[4] & _END_STREAM:
                    ended.setdefault(int.from_bytes(head[5:]), 0)
        writer.close()
    assert {0} == set(ended.values())
    assert await answers(service)


async def test_headers_that_never_end_lock_nobody_out(service: Service) -> None:
    """X50: slow headers, on hundreds of connections."""
    async with AsyncExitStack() as stack:
        for number in range(300):
            _, writer = await stack.enter_async_context(raw(service))
            headers = call_headers(USER)
            half = frame(_HEADERS, headers, flags=_END_HEADERS, stream=1)[: 9 + number % 60]
            writer.write(half)
        assert await answers(service)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(answers(service))


async def swallow(reader: asyncio.StreamReader) -> None:
    async for _ in frames(reader):
        pass


async def test_nothing_but_health_and_reflection_answers_without_a_token(
    service: Service,
) -> None:
    """X49: channelz is not there, and what reflection shows is what is published."""
    channel = service.bare()
    for path in (
        "/grpc.channelz.v1.Channelz/GetServers",
        "/grpc.channelz.v1.Channelz/GetTopChannels",
        "/grpc.admin.v1.Admin/Get",
    ):
        call: Any = channel.unary_unary(path)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=5)
        assert grpc.StatusCode.UNIMPLEMENTED == caught.value.code()
    ask: Any = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE.removeprefix("/")),
    ]
    listed, described = [each async for each in ask(iter(requests), timeout=5)]
    assert {
        SERVICE.removeprefix("/"),
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    } == {each.name for each in listed.list_services_response.service}
    (file, *_) = described.file_descriptor_response.file_descriptor_proto
    parsed = descriptor_pb2.FileDescriptorProto.FromString(file)
    assert not parsed.HasField("source_code_info")
    await channel.close()
