"""Bytes as they come: what cannot be read or breaks a rule is INVALID_ARGUMENT, on every kind."""

from __future__ import annotations

import gzip
import resource
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.integration.kit.conftest import USER, Service
from tests.support.cost import counted

BEARER = (("authorization", f"Bearer {USER}"),)
SERVICE = "/qflow.kittest.v1.KitTestService"


def nested(depth: int) -> bytes:
    """Field 4 (`inner`) within itself."""
    raw = b""
    for _ in range(depth):
        size, prefix = len(raw), b""
        while size > 127:
            prefix, size = prefix + bytes([size & 127 | 128]), size >> 7
        raw = b"\x22" + prefix + bytes([size]) + raw
    return raw


# What each of them costs to search whole: seconds to minutes, and up to gigabytes.
VERY_MANY = {
    "4 MiB of empty items": (b"\x42\x00" * 2_000_000, "notes"),
    "4 MiB of empty items in one": (
        b"\x22\x80\x92\xf4\x01" + b"\x42\x00" * 2_000_000,
        "inner.notes",
    ),
    "items that are each wrong": (b"\x42\x03\x12\x01x" * 190_000, "notes[0].id"),
    "numbers that name no value": (b"\x30\x09" * 190_000, "moods[0]"),
}
BAD_WIRE = {
    "B2 truncated": b"\x0a\x05ab",
    "B3 text that is not UTF-8": b"\x0a\x02\xff\xfe",
    "B4 nested 200 deep": nested(200),
    "nested 10,000 deep": nested(10_000),
    "no tag": b"\x00",
}


async def call_raw(service: Service, method: str, kind: str, raw: bytes) -> grpc.aio.AioRpcError:
    """Send raw bytes to an RPC of the kind and return its error."""
    channel = service.bare()
    multi: Any = getattr(channel, kind)(f"{SERVICE}/{method}")
    request: Any = iter([raw]) if kind.startswith("stream") else raw
    call = multi(request, metadata=BEARER, timeout=50)  # cost is counted by processor time
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012  # the block is what is tried
        if kind.endswith("unary"):
            await call
        else:
            async for _ in call:
                pass
    await channel.close()
    return caught.value


@pytest.mark.parametrize("raw", BAD_WIRE.values(), ids=BAD_WIRE.keys())
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("Say", "unary_unary"),
        ("Count", "unary_stream"),
        ("Collect", "stream_unary"),
        ("Chat", "stream_stream"),
    ],
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    service: Service, method: str, kind: str, raw: bytes
) -> None:
    error = await call_raw(service, method, kind, raw)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(error) == "MALFORMED_REQUEST"


async def test_unreadable_bytes_to_health_are_an_invalid_argument_too(service: Service) -> None:
    channel = service.bare()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a\x05ab", timeout=5)
    await channel.close()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_missing_required_field_is_named(service: Service) -> None:
    """B1, B17."""
    async with service.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stubs.grpc.KitTestServiceStub(channel).Need(service.pb.NeededRequest())
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields(caught.value) == ["name"]


@pytest.mark.parametrize("text", ["{%s}", "urn:uuid:%s", "%s ", "nonsense"])
async def test_an_id_in_any_but_the_canonical_form_is_refused(service: Service, text: str) -> None:
    """B18, B20."""
    wrong = text.replace("%s", "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a")
    error = await refused(service, service.pb.Note(id=wrong))
    assert fields(error) == ["id"]


async def test_every_place_a_nul_can_stand_is_found(service: Service) -> None:
    """B21."""
    pb = service.pb
    note = pb.Note(
        text="a\0",
        inner=pb.Note(text="\0"),
        labels={"k\0": "v", "k": "v\0"},
        notes=[pb.Note(), pb.Note(text="\0")],
    )
    error = await refused(service, note)
    expected = ["inner.text", 'labels["k"]', 'labels["k\\u0000"]', "notes[1].text", "text"]
    assert expected == sorted(fields(error))


async def test_a_broken_rule_is_told_with_its_whole_path(service: Service) -> None:
    pb, long = service.pb, "x" * 101
    note = pb.Note(
        notes=[pb.Note(), pb.Note(inner=pb.Note(text=long))], labels={"k": long}, text=long
    )
    error = await refused(service, note)
    assert ['labels["k"]', "notes[1].inner.text", "text"] == sorted(fields(error))


async def test_zero_bytes_in_a_bytes_field_are_fine(service: Service) -> None:
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        assert (await stub.Say(service.pb.Note(text="x", blob=b"\0\0"))).text == "x"


async def test_a_number_that_names_no_enum_value_is_refused_wherever_it_stands(
    service: Service,
) -> None:
    """B8."""
    pb = service.pb
    note = pb.Note(
        mood=7, moods=[1, 8], mood_by_name={"a": 9}, inner=pb.Note(mood=-1), notes=[pb.Note(mood=5)]
    )
    error = await refused(service, note)
    expected = ["inner.mood", "mood", 'mood_by_name["a"]', "moods[1]", "notes[0].mood"]
    assert expected == sorted(fields(error))


async def test_rules_hold_for_each_message_of_a_stream(service: Service) -> None:
    pb = service.pb
    async with service.channel() as channel:
        stub = service.stubs.grpc.KitTestServiceStub(channel)
        call = stub.Chat(iter([pb.Note(text="fine"), pb.Note(text="x" * 101)]))
        texts = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012  # the block is what is tried
            async for note in call:
                texts.append(note.text)  # noqa: PERF401  # what came before the error counts
    assert texts == ["fine"]
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert fields(caught.value) == ["text"]


async def test_unknown_fields_are_ignored(service: Service) -> None:
    """B9, F37."""
    channel = service.bare()
    say = channel.unary_unary(f"{SERVICE}/Say", response_deserializer=service.pb.Note.FromString)
    unknown = b"\xfa\x3e\x03abc"  # field 1007
    assert (await say(b"\x0a\x02hi" + unknown, metadata=BEARER, timeout=5)).text == "hi"
    await channel.close()


async def test_a_message_above_4_mib_is_refused(service: Service) -> None:
    """B5, B32."""
    error = await call_raw(service, "Say", "unary_unary", bytes(5 * 1024 * 1024))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("raw", "field"), VERY_MANY.values(), ids=VERY_MANY.keys())
async def test_a_message_with_very_many_faults_costs_no_more_than_those_that_are_told(
    service: Service, raw: bytes, field: str
) -> None:
    """B5: nobody else is served while one request is searched."""
    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with counted() as cost:
        error = await call_raw(service, "Say", "unary_unary", raw)
    assert cost.ms < 4000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib < 512 * 1024
    assert grpc.StatusCode.INVALID_ARGUMENT == error.code()
    assert fields(error)[0] == field
    assert len(fields(error)) <= 100


async def test_the_one_fault_among_very_many_elements_is_told_with_its_place(
    service: Service,
) -> None:
    pb = service.pb
    notes = [pb.Note() for _ in range(5_000)]
    notes[300] = pb.Note(notes=[pb.Note(id="x"), pb.Note(text="x" * 101)])
    notes[4_999] = pb.Note(inner=pb.Note(id="x"))
    error = await refused(service, pb.Note(inner=pb.Note(notes=notes)))
    assert fields(error) == [
        "inner.notes[300].notes[0].id",
        "inner.notes[300].notes[1].text",
        "inner.notes[4999].inner.id",
    ]


async def test_a_message_that_grows_above_4_mib_when_unpacked_is_refused(service: Service) -> None:
    """B6."""
    assert len(gzip.compress(bytes(50 * 1024 * 1024))) < 100_000
    channel = service.bare([("grpc.default_compression_algorithm", 2)])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"{SERVICE}/Say")(
            bytes(50 * 1024 * 1024),
            metadata=BEARER,
            timeout=10,
            compression=grpc.Compression.Gzip,
        )
    await channel.close()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method_stays_unimplemented_with_and_without_a_token(
    service: Service,
) -> None:
    """B7."""
    channel = service.bare()
    for metadata in ((), BEARER):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"{SERVICE}/Nothing")(b"", metadata=metadata, timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    await channel.close()


async def test_metadata_above_16_kib_is_refused(service: Service) -> None:
    """B10."""
    channel = service.bare()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"{SERVICE}/Say")(
            b"", metadata=(*BEARER, ("x-long", "a" * 20_000)), timeout=5
        )
    await channel.close()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_header_that_is_not_ascii_harms_only_its_sender(service: Service) -> None:
    """B11."""
    channel = service.bare()
    with pytest.raises(Exception, match="execute_batch"):  # the client's own stack refuses it
        await channel.unary_unary(f"{SERVICE}/Say")(b"", metadata=(("x-name", "é"),), timeout=5)
    await channel.close()
    async with service.channel() as healthy:
        stub = service.stubs.grpc.KitTestServiceStub(healthy)
        assert (await stub.Say(service.pb.Note(text="x"))).text == "x"


async def refused(service: Service, note: Any) -> grpc.aio.AioRpcError:
    """Say it and return the INVALID_ARGUMENT it must give."""
    async with service.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stubs.grpc.KitTestServiceStub(channel).Say(note)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert service.behaviors.seen == []
    return caught.value


def reason(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has the same methods
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.domain == "qflow"
    return str(info.reason)


def fields(error: grpc.aio.AioRpcError) -> list[str]:
    bad = error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has the same methods
    assert status is not None
    [detail] = [detail for detail in status.details if detail.Is(bad.DESCRIPTOR)]
    detail.Unpack(bad)
    return [violation.field for violation in bad.field_violations]
