"""Frames and questions of runners that are not as the contract says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from qflow.orchestrator.v1 import attach_service_pb2 as pb
from qflow.orchestrator.v1.attach_service_pb2_grpc import AttachServiceStub

from services.kit.rpc.channel import open_channel
from tests.integration.orchestrator.conftest import Orchestra

REF = uuid4().bytes


def hello(**changed: Any) -> pb.RunnerHello:
    fields: dict[str, Any] = {"incarnation": str(uuid4()), "protocol": 1, "slots": 1}
    return pb.RunnerHello(**fields | changed)


def result(**changed: Any) -> pb.AttachRequest:
    fields: dict[str, Any] = {"attempt_ref": REF, "success": pb.AttemptSuccess()}
    return pb.AttachRequest(results=[pb.AttemptResult(**fields | changed)])


def file(file_id: bytes, sha256: bytes) -> pb.AttemptSuccess:
    return pb.AttemptSuccess(file=pb.AttemptValueFile(file_id=file_id, sha256=sha256))


FIRST = {
    "incarnation": hello(incarnation="x"),
    "protocol": hello(protocol=0),
    "slots": hello(slots=0),
    "inventory": hello(inventory=[pb.RunnerInventoryItem(attempt_ref=b"abc")]),
    "NUL": hello(pythons=["3\0"]),
}
LATER = {
    "attempt_ref": result(attempt_ref=b"abc"),
    "no attempt_ref": result(attempt_ref=b""),
    "container_id": result(container_id=b"abc"),
    "file_id": result(success=file(b"abc", bytes(32))),
    "sha256": result(success=file(REF, b"abc")),
    "outcome": pb.AttachRequest(results=[pb.AttemptResult(attempt_ref=REF)]),
    "decline": pb.AttachRequest(declines=[pb.AttemptDecline(attempt_ref=b"abc")]),
}


async def refused(orchestra: Orchestra, *frames: pb.AttachRequest) -> grpc.StatusCode:
    """Send frames, stay, and return how the stream ends."""

    async def all_frames() -> AsyncIterator[pb.AttachRequest]:
        for frame in frames:
            yield frame
        await asyncio.Event().wait()

    async with open_channel(orchestra.attach_address, orchestra.runner_token) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in AttachServiceStub(channel).Attach(all_frames()):
                pass
    return caught.value.code()


async def test_a_stream_begins_with_a_whole_hello_or_not_at_all(orchestra: Orchestra) -> None:
    """B18."""
    async with orchestra.running():
        for name, first in FIRST.items():
            code = await refused(orchestra, pb.AttachRequest(hello=first))
            assert (name, grpc.StatusCode.INVALID_ARGUMENT) == (name, code)


async def test_a_later_frame_with_a_wrong_id_ends_its_stream(orchestra: Orchestra) -> None:
    """B18."""
    async with orchestra.running():
        for name, frame in LATER.items():
            code = await refused(orchestra, pb.AttachRequest(hello=hello()), frame)
            assert (name, grpc.StatusCode.INVALID_ARGUMENT) == (name, code)


async def test_values_are_asked_for_with_a_whole_id(orchestra: Orchestra) -> None:
    """B18."""
    async with (
        orchestra.running(),
        open_channel(orchestra.attach_address, orchestra.runner_token) as channel,
    ):
        for ref in (b"", b"abc"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (
                    AttachServiceStub(channel)
                    .GetValues(pb.GetValuesRequest(attempt_ref=ref))
                    .read()
                )
            assert grpc.StatusCode.INVALID_ARGUMENT == caught.value.code()
