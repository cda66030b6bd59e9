"""The page that Prometheus reads: what calls leave on it, and what it makes of bad requests."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health
from prometheus_client.parser import text_string_to_metric_families

from services.kit.env import EnvError
from services.kit.figures import Distribution, Figure, gauge, histogram
from services.kit.rpc.channel import open_channel
from services.kit.rpc.listener import Listener
from services.kit.rpc.server import open_server
from services.kit.rpc.tally import Calls
from services.kit.scrape import address_of, scraped, written
from tests.integration.kit.conftest import USER, Service


async def asked(address: str, request: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


def samples(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value
        for family in text_string_to_metric_families(page)
        for each in family.samples
    }


async def test_calls_are_told_by_method_code_and_duration(service: Service) -> None:
    calls = Calls()
    server = await open_server(
        Listener(address="127.0.0.1:0"),
        [(service.stubs.grpc.add_KitTestServiceServicer_to_server, _servicer(service))],
        authenticator=service.authenticator,
        health_servicer=health.aio.HealthServicer(),
        calls=calls,
    )
    await server.start()
    async with (
        scraped("127.0.0.1:0", [calls.figures]) as address,
        open_channel(server.address, USER) as channel,
    ):
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        await stub.Say(service.pb.Note(text="a"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Say(service.pb.Note(text="fault"))
        assert [note.text async for note in stub.Count(service.pb.Note(text="n"))]
        assert address is not None
        answer = await asked(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    await server.stop(0)
    head, _, page = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain")
    found = samples(page)
    service_name = next(dict(labels)["service"] for _, labels in found if "method" in dict(labels))
    say = (("method", "Say"), ("service", service_name))
    count = (("method", "Count"), ("service", service_name))
    assert found["qflow_rpc_calls_total", (("code", "OK"), *say)] == 1
    assert found["qflow_rpc_calls_total", (("code", "INTERNAL"), *say)] == 1
    assert found["qflow_rpc_calls_total", (("code", "OK"), *count)] == 1
    assert found["qflow_rpc_calls_open", say] == 0
    assert found["qflow_rpc_duration_seconds_count", say] == 2
    assert ("qflow_rpc_duration_seconds_count", count) not in found  # a stream is held, not slow
    assert found["process_resident_memory_bytes", ()] > 0


def _servicer(service: Service) -> object:
    async def unary(request: object, _context: object) -> object:
        if getattr(request, "text", "") == "fault":
            raise ZeroDivisionError
        return service.pb.Note(text="said")

    class Servicer(service.stubs.grpc.KitTestServiceServicer):  # type: ignore[misc, name-defined]
        async def Say(self, request: object, context: object) -> object:  # noqa: N802
            return await unary(request, context)

        async def Count(self, _request: object, _context: object) -> object:  # noqa: N802
            yield service.pb.Note(text="one")

    return Servicer()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 "),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", b"HTTP/1.1 431 "),
        (b"\r\n\r\n", b"HTTP/1.1 405 "),
    ],
)
async def test_anything_else_is_refused_and_the_next_scrape_is_answered(
    request_: bytes, status: bytes
) -> None:
    async with scraped("127.0.0.1:0", []) as address:
        assert address is not None
        assert (await asked(address, request_)).startswith(status)
        good = await asked(address, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n")
        assert good.startswith(b"HTTP/1.1 200 ")


async def test_a_figure_that_cannot_be_read_is_a_failed_scrape_and_no_more() -> None:
    def broken() -> list[Figure]:
        raise ZeroDivisionError

    async with scraped("127.0.0.1:0", [broken]) as address:
        assert address is not None
        answer = await asked(address, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 500 ")


async def test_an_address_in_use_stops_the_start() -> None:
    async with scraped("127.0.0.1:0", []) as address:
        with pytest.raises(EnvError, match="in use"):
            async with scraped(address, []):
                pass


def test_a_service_has_its_own_address_or_that_of_all_or_none() -> None:
    env = {"QFLOW_METRICS_LISTEN": "127.0.0.1:1", "QFLOW_RUNNER_METRICS_LISTEN": "127.0.0.1:2"}
    assert ["127.0.0.1:1", "127.0.0.1:2"] == [address_of(env, n) for n in ("registry", "runner")]
    assert address_of({}, "registry") is None
    with pytest.raises(EnvError, match="host:port"):
        address_of({"QFLOW_METRICS_LISTEN": "7111"}, "registry")


async def test_a_distribution_counts_up_to_and_with_each_bound() -> None:
    taken = Distribution((1, 2))
    for value in (0.5, 1, 1.5, 9):
        taken.note(value)
    page, _ = await written([lambda: [histogram("qflow_x_seconds", "X.", taken)]])
    found = samples(page.decode())
    assert [2, 3, 4] == [
        found["qflow_x_seconds_bucket", (("le", bound),)] for bound in ("1.0", "2.0", "+Inf")
    ]
    assert found["qflow_x_seconds_sum", ()] == 12


async def test_sources_that_tell_of_one_name_are_one_family() -> None:
    page, _ = await written(
        [lambda: [gauge("qflow_y", "Y.", 1)], lambda: [Figure("qflow_y", "Y.", "gauge", (), [])]]
    )
    assert page.decode().count("# TYPE qflow_y gauge") == 1
