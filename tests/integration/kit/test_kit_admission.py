"""How many calls are taken, and what becomes of those that begin and then say nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from services.kit.rpc.call import Limits
from tests.integration.kit.conftest import VIEWER, Service
from tests.integration.kit.test_kit_wire import BEARER, SERVICE, reason

SMALL = {"concurrent_max": 20}
CHECK = "/grpc.health.v1.Health/Check"


async def silence() -> AsyncIterator[bytes]:
    """The request of a call that has begun and whose message never comes."""
    await asyncio.Event().wait()
    yield b""


def half_open(channel: Any, path: str, metadata: Any = ()) -> Any:
    """Begin a call with one message, and send headers alone; on the wire it is as any other."""
    return channel.stream_unary(path)(silence(), metadata=metadata, timeout=30)


async def ended(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def check(channel: grpc.aio.Channel) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    return int(answer.status)


@pytest.mark.parametrize("service", [SMALL], indirect=True)
async def test_streams_above_the_limit_are_refused_at_once(service: Service) -> None:
    """B16, with a small limit in place of a thousand."""
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        calls = [stub.Chat() for _ in range(15)]
        for call in calls:
            await call.write(service.pb.Note(text="x"))
            await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat().read()
        assert (caught.value.code(), reason(caught.value)) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "TOO_MANY_CALLS_OF_CALLER",
        )
        async with service.channel(VIEWER) as another:  # others have room, until that is taken
            others = service.stubs.grpc.KitTestServiceStub(another)
            more = [others.Chat() for _ in range(5)]
            for call in more:
                await call.write(service.pb.Note(text="x"))
                await call.read()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await others.Chat().read()
            assert_full(caught.value)
        assert health_pb2.HealthCheckResponse.SERVING == await check(channel)
        for call in calls:
            call.cancel()


@pytest.mark.parametrize("service", [SMALL], indirect=True)
async def test_who_has_no_token_is_refused_before_their_message_is_waited_for(
    service: Service,
) -> None:
    """B12, X1."""
    channel = service.bare()
    errors = await asyncio.gather(*(ended(half_open(channel, f"{SERVICE}/Say")) for _ in range(30)))
    assert {error.code() for error in errors} == {grpc.StatusCode.UNAUTHENTICATED}
    await channel.close()


@pytest.mark.parametrize("service", [SMALL], indirect=True)
@pytest.mark.parametrize(
    ("path", "metadata"), [(CHECK, ()), (f"{SERVICE}/Greet", ()), (f"{SERVICE}/Say", BEARER)]
)
async def test_calls_that_say_nothing_lock_nobody_out(
    service: Service, path: str, metadata: Any
) -> None:
    """B12: the one that has been silent for longest makes room."""
    channel = service.bare()
    silent = [half_open(channel, path, metadata) for _ in range(30)]
    endings = [asyncio.ensure_future(ended(call)) for call in silent]
    first, _ = await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
    assert_full(await first.pop())
    async with service.channel() as another:
        stub = service.stubs.grpc.KitTestServiceStub(another)
        assert (await stub.Say(service.pb.Note(text="x"))).text == "x"
        assert (await stub.Greet(service.pb.Note(text="x"))).text == "x"
        assert health_pb2.HealthCheckResponse.SERVING == await check(another)
    await channel.close()
    await asyncio.gather(*endings, return_exceptions=True)


@pytest.mark.parametrize("service", [{"limits": Limits(unary_default_s=0.05)}], indirect=True)
@pytest.mark.parametrize(
    ("method", "expected"), [("Say", "DEADLINE_EXCEEDED"), ("Count", "REQUEST_IDLE")]
)
async def test_a_message_that_never_comes_is_not_waited_for_longer_than_a_call_may_last(
    service: Service, method: str, expected: str
) -> None:
    """B12."""
    channel = service.bare()
    call = channel.stream_unary(f"{SERVICE}/{method}")(silence(), metadata=BEARER)
    error = await ended(call)
    await channel.close()
    assert grpc.StatusCode.DEADLINE_EXCEEDED == error.code()
    assert expected == reason(error)


async def test_a_call_that_ends_without_its_message_is_an_invalid_argument(
    service: Service,
) -> None:
    """B1."""
    channel = service.bare()
    error = await ended(channel.stream_unary(f"{SERVICE}/Say")(iter([]), metadata=BEARER))
    await channel.close()
    assert grpc.StatusCode.INVALID_ARGUMENT == error.code()
    assert reason(error) == "MALFORMED_REQUEST"


@pytest.mark.parametrize("service", [SMALL], indirect=True)
async def test_streams_without_a_token_have_a_small_room_of_their_own(service: Service) -> None:
    """B16."""
    channel = service.bare()
    stub: Any = health_pb2_grpc.HealthStub(channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
    for watch in watches:
        await watch.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Watch(health_pb2.HealthCheckRequest()).read()
    assert_full(caught.value)
    assert health_pb2.HealthCheckResponse.SERVING == await check(channel)
    async with service.channel() as another:
        said = await service.stubs.grpc.KitTestServiceStub(another).Say(service.pb.Note(text="x"))
    assert said.text == "x"
    for watch in watches:
        watch.cancel()
    await channel.close()


def assert_full(error: grpc.aio.AioRpcError) -> None:
    assert grpc.StatusCode.RESOURCE_EXHAUSTED == error.code()
    assert reason(error) == "TOO_MANY_CALLS"
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has the same methods
    assert status is not None
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
