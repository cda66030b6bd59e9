"""How calls end: errors with details, deadlines, vanished clients, a stopping server."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from structlog.testing import capture_logs

from services.kit import errors
from services.kit.env import EnvError
from services.kit.rpc import errors as errors_stage
from services.kit.rpc import reflection
from services.kit.rpc.call import Limits
from services.kit.rpc.channel import open_channel
from services.kit.rpc.errors import DOMAIN
from services.kit.rpc.listener import Listener
from services.kit.rpc.server import open_server
from services.kit.rpc.tls import Trust
from services.kit.run import listener
from tests.integration.kit.conftest import USER, Service
from tests.integration.kit.test_kit_auth import KINDS, outcome
from tests.integration.kit.test_kit_wire import BEARER, SERVICE, fields, reason
from tests.support.link import Link

TOKEN: list[tuple[str, str | bytes]] = [("authorization", f"Bearer {USER}")]


def failing(service: Service, error: BaseException | None) -> None:
    """Let every RPC fail in this way."""

    async def unary(_request: Any, _context: Any) -> Any:
        if error is not None:
            raise error

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        if error is not None:
            raise error
        yield

    service.behaviors.unary, service.behaviors.stream = unary, stream


@pytest.mark.parametrize(("method", "kind"), KINDS)
async def test_an_error_reaches_the_caller_with_reason_and_details(
    service: Service, method: str, kind: str
) -> None:
    failing(
        service,
        errors.FailedPrecondition(
            "EXECUTION_FINISHED",
            "the execution is over; start a new one",
            resource=("execution", "7"),
            retry_after_s=1.5,
            execution_id=7,
        ),
    )
    error = await outcome(service, method, kind, TOKEN)
    assert error is not None
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "the execution is over; start a new one"
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has the same methods
    assert status is not None
    info, retry, resource, precondition = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.ResourceInfo(),
        error_details_pb2.PreconditionFailure(),
    )
    for packed, detail in zip(status.details, (info, retry, resource, precondition), strict=True):
        assert packed.Unpack(detail)
    assert (info.domain, info.reason) == (DOMAIN, "EXECUTION_FINISHED")
    assert dict(info.metadata) == {"execution_id": "7"}
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert (resource.resource_type, resource.resource_name) == ("execution", "7")
    assert precondition.violations[0].subject == "execution/7"


@pytest.mark.parametrize(("method", "kind"), KINDS)
async def test_what_nobody_foresaw_is_internal_with_an_id_and_no_word_of_it(
    service: Service, method: str, kind: str
) -> None:
    """I37."""
    failing(service, RuntimeError("canary-secret"))
    with capture_logs() as lines:
        error = await outcome(service, method, kind, TOKEN)
    assert error is not None
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "canary" not in str(error)
    [crash] = [line for line in lines if line["event"] == "call_crashed"]
    assert f"internal error {crash['request_id']}" == error.details()
    assert "canary-secret" in str(crash["exc_info"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (asyncpg.SerializationError("x"), grpc.StatusCode.ABORTED),
        (asyncpg.DeadlockDetectedError("x"), grpc.StatusCode.ABORTED),
        (asyncpg.TooManyConnectionsError("x"), grpc.StatusCode.UNAVAILABLE),
        (asyncpg.AdminShutdownError("x"), grpc.StatusCode.UNAVAILABLE),
        (asyncpg.ConnectionDoesNotExistError("x"), grpc.StatusCode.UNAVAILABLE),
        (asyncpg.InterfaceError("connection is closed"), grpc.StatusCode.UNAVAILABLE),
        (asyncpg.InternalClientError("cannot switch to state"), grpc.StatusCode.UNAVAILABLE),
        (ConnectionRefusedError("x"), grpc.StatusCode.UNAVAILABLE),
        (asyncpg.ReadOnlySQLTransactionError("x"), grpc.StatusCode.UNAVAILABLE),
        (asyncpg.QueryCanceledError("x"), grpc.StatusCode.UNAVAILABLE),
        (TimeoutError("x"), grpc.StatusCode.UNAVAILABLE),
        (asyncpg.DiskFullError("x"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (asyncpg.UniqueViolationError("x"), grpc.StatusCode.ABORTED),
        (asyncpg.CheckViolationError("x"), grpc.StatusCode.INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name,
)
async def test_faults_of_the_database_are_told_in_bland_words_and_when_to_retry(
    service: Service, error: Exception, code: grpc.StatusCode
) -> None:
    """F13, F14, F16."""
    failing(service, error)
    got = await outcome(service, "Say", "unary_unary", TOKEN)
    assert got is not None
    assert code == got.code()
    status = rpc_status.from_call(got)  # type: ignore[arg-type]  # has the same methods
    assert status is not None
    retries = [d for d in status.details if d.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
    assert (code is not grpc.StatusCode.INTERNAL) == bool(retries)


async def test_many_faults_are_cut_to_what_trailers_can_carry(service: Service) -> None:
    faults = [errors.FieldViolation(f"nodes[{n}]", "x" * 300) for n in range(10_000)]
    failing(service, errors.InvalidArgument("INVALID_GRAPH", "x" * 5000, fields=faults))
    error = await outcome(service, "Say", "unary_unary", TOKEN)
    assert error is not None
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields(error)[0] == "nodes[0]"
    assert 10 < len(fields(error)) < 100


async def test_a_deadline_that_is_past_is_told_before_anything_is_done(service: Service) -> None:
    """B13."""
    error = await no_time(service)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.behaviors.seen == []


@pytest.mark.parametrize("service", [{"public": False}], indirect=True)
async def test_between_services_the_messages_of_a_stream_are_searched_up_to_the_first(
    service: Service,
) -> None:
    pb = service.pb
    notes = [pb.Note(text="first"), pb.Note(text="x" * 101)]
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        assert ["first", "x" * 101] == [note.text async for note in stub.Chat(iter(notes))]
        for call in (
            stub.Say(notes[1]),
            stub.Count(notes[1]).read(),
            stub.Collect(iter(notes[1:])),
            stub.Chat(iter(notes[1:])).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()


async def test_a_call_that_a_call_makes_ends_before_it(service: Service) -> None:
    async def unary(request: Any, context: Any) -> Any:
        if request.text != "outer":
            return service.pb.Note(text=str(context.time_remaining()))
        async with service.channel() as channel:
            return await service.stubs.grpc.KitTestServiceStub(channel).Say(service.pb.Note())

    service.behaviors.unary = unary
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        left = await stub.Say(service.pb.Note(text="outer"), timeout=3)
        # Not the 10 seconds of a call without a timeout; the wire rounds up by some hundredths.
        assert 0 < float(left.text) < 3.2


async def test_a_service_that_another_cannot_reach_is_unavailable_not_internal(
    service: Service,
) -> None:
    async def unary(request: Any, _context: Any) -> Any:
        async with open_channel("unix:/nowhere", USER) as channel:
            return await service.stubs.grpc.KitTestServiceStub(channel).Say(request)

    service.behaviors.unary = unary
    error = await outcome(service, "Say", "unary_unary", TOKEN)
    assert error is not None
    assert grpc.StatusCode.UNAVAILABLE == error.code()
    assert "SERVICE_UNAVAILABLE" == reason(error)


async def no_time(service: Service) -> grpc.aio.AioRpcError:
    channel = service.bare()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"{SERVICE}/Say")(b"", metadata=BEARER, timeout=-1.0)
    await channel.close()
    return caught.value


@pytest.mark.parametrize("service", [{"limits": Limits(unary_default_s=0.05)}], indirect=True)
async def test_a_call_without_a_deadline_gets_the_servers(service: Service) -> None:
    """B12."""
    cancelled = asyncio.Event()

    async def unary(_request: Any, _context: Any) -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    service.behaviors.unary = unary
    channel = service.bare()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"{SERVICE}/Say")(b"", metadata=BEARER)
    await channel.close()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason(caught.value) == "DEADLINE_EXCEEDED"
    assert cancelled.is_set()


async def written(call: Any, parts: Sequence[Any]) -> Any:
    """Write an upload as a client does that writes by itself."""
    for part in parts:
        await call.write(part)
    await call.done_writing()
    return await call


@pytest.mark.parametrize("token", [USER, "of-nobody"])
async def test_an_upload_that_is_refused_while_it_is_written_is_told_why(
    service: Service, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B71: a client whose write fails as its call ends says INTERNAL, which no server said."""
    # A busy machine may keep the client from writing for longer than is usual.
    monkeypatch.setattr(errors_stage, "_SILENT_S", 5.0)
    monkeypatch.setattr(errors_stage, "_HEARD_OUT_MAX_S", 10.0)

    async def full(_request: Any, _context: Any) -> Any:
        raise errors.ResourceExhausted("FULL", "no")

    service.behaviors.unary = full
    wanted = {USER: grpc.StatusCode.RESOURCE_EXHAUSTED}
    part = service.pb.Note(text="x" * 10_000)
    async with service.channel(token) as channel:
        for _ in range(10):
            call = service.stubs.grpc.KitTestServiceStub(channel).Collect(timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await written(call, [part] * 50)
            assert wanted.get(token, grpc.StatusCode.UNAUTHENTICATED) == caught.value.code()


@pytest.mark.parametrize("how", ["cancel", "disconnect"])
async def test_an_upload_whose_client_vanishes_is_cancelled_not_completed(
    service: Service, how: str
) -> None:
    """B14."""
    begun, end = asyncio.Event(), asyncio.Queue[str]()

    async def unary(request: Any, _context: Any) -> Any:
        try:
            async for _ in request:
                begun.set()
            end.put_nowait("completed")
        except asyncio.CancelledError:
            end.put_nowait("cancelled")
            raise

    service.behaviors.unary = unary
    channel = service.channel()
    call = service.stubs.grpc.KitTestServiceStub(channel).Collect()
    await call.write(service.pb.Note(text="part"))
    await begun.wait()
    if how == "cancel":
        call.cancel()
    await channel.close()
    assert await end.get() == "cancelled"


@pytest.mark.parametrize("service", [{"limits": Limits(upload_idle_s=0.05)}], indirect=True)
async def test_an_upload_that_falls_silent_is_ended(service: Service) -> None:
    """B15."""
    async with service.channel() as channel:
        call = service.stubs.grpc.KitTestServiceStub(channel).Collect()
        await call.write(service.pb.Note(text="part"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason(caught.value) == "UPLOAD_IDLE"


async def test_a_stopping_server_tells_open_streams_to_resume_elsewhere(service: Service) -> None:
    """F8, CP27: a watch does not hold the process for the whole grace."""
    async with service.channel() as channel:
        call = service.stubs.grpc.KitTestServiceStub(channel).Chat()
        await call.write(service.pb.Note(text="x"))
        await call.read()
        await asyncio.wait_for(service.server.stop(20), 15)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(caught.value) == "DRAINING"


async def test_a_stream_that_is_ended_while_its_first_message_is_written_is_told_why(
    service: Service,
) -> None:
    """CP27."""
    stopping: list[asyncio.Task[None]] = []

    async def stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
        # It takes its first step as soon as the write waits.
        stopping.append(asyncio.create_task(service.server.stop(20)))
        yield service.pb.Note(text="x")
        await asyncio.Event().wait()

    service.behaviors.stream = stream
    async with service.channel() as channel:
        call = service.stubs.grpc.KitTestServiceStub(channel).Count(service.pb.Note(), timeout=10)
        await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        await asyncio.wait_for(stopping[0], 15)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(caught.value) == "DRAINING"


async def test_a_stopping_server_lets_unary_calls_finish(service: Service) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def unary(request: Any, _context: Any) -> Any:
        begun.set()
        await go_on.wait()
        return request

    service.behaviors.unary = unary
    async with service.channel() as channel:
        call = service.stubs.grpc.KitTestServiceStub(channel).Say(service.pb.Note(text="late"))
        asking = asyncio.ensure_future(call)
        await begun.wait()
        stopping = asyncio.create_task(service.server.stop(20))
        go_on.set()
        assert (await asking).text == "late"
        await stopping


@pytest.mark.parametrize("method", ["Say", "Collect"])
async def test_what_is_open_when_a_stopping_server_has_no_more_time_is_told_to_go_elsewhere(
    service: Service, method: str
) -> None:
    """CP27: gRPC would say that its callers cancelled, and no client repeats what it cancelled."""
    begun = asyncio.Event()

    async def stuck(_request: Any, _context: Any) -> Any:
        begun.set()
        await asyncio.Event().wait()

    service.behaviors.unary = stuck
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        sent = service.pb.Note() if method == "Say" else iter([service.pb.Note()])
        asking = asyncio.ensure_future(getattr(stub, method)(sent, timeout=30))
        await begun.wait()
        await service.server.stop(0.5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asking
    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    assert "DRAINING" == reason(caught.value)


async def test_calls_that_wait_for_a_server_that_begins_to_stop_are_told_so(
    service: Service,
) -> None:
    """F8: gRPC would drop them, and say that their callers cancelled."""
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        await stub.Say(service.pb.Note(text="connected"))
        asking = [asyncio.ensure_future(stub.Say(service.pb.Note(text="x"))) for _ in range(50)]
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251  # they travel while the server's loop does not look
        stopping = asyncio.create_task(service.server.stop(20))
        ended = await asyncio.gather(*asking, return_exceptions=True)
        await stopping
    failed = [each for each in ended if isinstance(each, grpc.aio.AioRpcError)]
    assert 50 == len(failed) + sum(each == service.pb.Note(text="x") for each in ended)
    # What had not even arrived may find the door closed, which is no word of the server's.
    assert {grpc.StatusCode.UNAVAILABLE} == {each.code() for each in failed}


async def test_one_line_is_logged_per_call_without_payload_or_token(service: Service) -> None:
    """I37."""
    with capture_logs() as lines:
        channel = service.bare()
        await channel.unary_unary(f"{SERVICE}/Say")(
            b"\x0a\x06canary", metadata=(*BEARER, ("x-request-id", "wanted-12345")), timeout=5
        )
        await channel.close()
    [line] = lines
    assert line["event"] == "call_ended"
    assert line["code"] == "OK"
    assert line["duration_ms"] > 0
    assert "canary" not in str(lines)
    assert USER not in str(lines)


@pytest.mark.parametrize("name", [reflection.V1, reflection.V1ALPHA])
async def test_reflection_answers_under_both_names_without_a_token(
    service: Service, name: str
) -> None:
    channel = service.bare()
    ask = channel.stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE[1:]),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=name),
    ]
    listed, described, itself = [answer async for answer in ask(iter(requests), timeout=5)]
    await channel.close()
    names = {entry.name for entry in listed.list_services_response.service}
    assert {SERVICE[1:], "grpc.health.v1.Health", reflection.V1, reflection.V1ALPHA} == names
    assert described.file_descriptor_response.file_descriptor_proto
    assert itself.file_descriptor_response.file_descriptor_proto


async def test_health_answers_without_a_token(service: Service) -> None:
    channel = service.bare()
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    await channel.close()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"])
async def test_plain_text_beyond_this_machine_is_refused_at_start(
    service: Service, address: str
) -> None:
    with pytest.raises(EnvError, match="plain text"):
        await bind(service, address)


async def test_an_address_in_use_is_refused_at_start(service: Service) -> None:
    with pytest.raises(EnvError, match="in use"):
        await bind(service, service.server.address)


async def test_a_unix_socket_is_for_its_owner_alone(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "run" / "attach.sock"
    await bind(service, f"unix:{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(EnvError, match="longer than 107 bytes"):
        await bind(service, f"unix:{tmp_path}/{'a' * 100}")


async def test_with_certificates_a_server_may_be_reached_from_anywhere(
    service: Service, tmp_path: Path
) -> None:
    key, certificate = make_certificate(tmp_path)
    env = {
        "QFLOW_X_LISTEN": "0.0.0.0:0",
        "QFLOW_TLS_KEY_FILE": str(key),
        "QFLOW_TLS_CERTIFICATE_FILE": str(certificate),
    }
    where = listener(env, "x", "127.0.0.1:0")
    assert "PRIVATE" not in repr(where)
    server = await open_server(
        where, [], authenticator=service.authenticator, health_servicer=service.health
    )
    await server.start()
    address = server.address.replace("0.0.0.0", "localhost")
    async with open_channel(address, USER, trust=Trust(authorities=certificate)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        assert health_pb2.HealthCheckResponse.SERVING == answer.status
    async with open_channel(address, USER) as plain:
        stub = health_pb2_grpc.HealthStub(plain)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest())
    assert grpc.StatusCode.UNAVAILABLE == caught.value.code()
    await server.stop(0)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a key and a certificate for localhost that signs itself."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with: apt-get install openssl")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", "/CN=localhost", "-keyout", str(key)]
    command += ["-addext", "subjectAltName=DNS:localhost", "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


async def bind(service: Service, address: str) -> None:
    await open_server(
        Listener(address=address),
        [],
        authenticator=service.authenticator,
        health_servicer=service.health,
    )


async def test_a_connection_that_takes_a_second_to_be_made_is_waited_for(service: Service) -> None:
    """A server is far away, or its machine is busy: the first call is not refused for it."""
    async with (
        Link.to(service.server.address) as link,
        open_channel(link.address, USER) as channel,
    ):
        link.hold("up", "down")
        asyncio.get_running_loop().call_later(1, link.heal)
        stub: Any = service.stubs.grpc.KitTestServiceStub(channel)
        assert "hi" == (await stub.Say(service.pb.Note(text="hi"), timeout=10)).text
