"""F37: a client or a peer of the next version meets this one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from qflow.orchestrator.v1 import execution_pb2

from tests.support import skew
from tests.support.suite_fixtures import SuiteFactory

# A service that breaks down over a call, does not know it or was not reached has not read it.
NO_ANSWER = ("INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


async def _status(channel: grpc.aio.Channel, method: MethodDescriptor, request: bytes) -> str:
    """Call with bytes as they are, and give the code and the text of the answer."""
    path = f"/{method.containing_service.full_name}/{method.name}"

    def same(data: bytes) -> bytes:
        return data

    def requests() -> Iterator[bytes]:
        yield request

    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    begin = kinds[method.client_streaming, method.server_streaming](
        path, request_serializer=same, response_deserializer=same
    )
    call = begin(requests() if method.client_streaming else request, timeout=10.0)
    try:
        if method.server_streaming:
            await call.read()
            call.cancel()
            return "OK"
        await call
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {error.details()}"
    return "OK"


@pytest.mark.slow
async def test_a_field_of_the_next_version_changes_no_answer_of_any_rpc(
    suite_factory: SuiteFactory,
) -> None:
    """F37, B9: unknown fields are ignored on every RPC of every kind."""
    suite = suite_factory()  # one of its own: some calls end all sessions of the owner
    for method in skew.methods():
        service = method.full_name.split(".")[1]
        if method.containing_service.name in ("AttachService", "PeerService", "PlacementService"):
            continue  # runners dial a door of their own; its frames are proven below
        later = skew.next_class(method.input_type.full_name)()
        setattr(later, skew.ADDED, "x" * 100)
        answers: list[str] = []
        for request in (b"", later.SerializeToString()):
            # A session for each call: one of the calls ends it.
            async with suite.channel(service, token=await suite.sign_in()) as channel:
                answers.append(await _status(channel, method, request))
        today, with_more = answers
        assert with_more == today, method.full_name
        assert not today.startswith(NO_ANSWER), f"{method.full_name}: {today}"


@pytest.mark.parametrize("method", skew.methods(), ids=lambda method: method.full_name)
def test_a_message_of_the_next_version_is_read_by_this_one_and_the_other_way_round(
    method: MethodDescriptor,
) -> None:
    """F37: both directions of every RPC, `Attach` included."""
    for message in (method.input_type, method.output_type):
        now: type[Message] = message_factory.GetMessageClass(message)
        later = skew.next_class(message.full_name)()
        setattr(later, skew.ADDED, "new")
        read = now.FromString(later.SerializeToString())
        # Passed on untouched: a proxy between two newer ones loses nothing.
        again = type(later).FromString(read.SerializeToString())
        assert getattr(again, skew.ADDED) == "new"
        older = type(later).FromString(now().SerializeToString())
        assert getattr(older, skew.ADDED) == ""


def test_a_state_that_this_version_does_not_know_is_kept_as_its_number() -> None:
    """F37: an enum of a later server reaches an older client without an error."""
    execution = execution_pb2.Execution(status=99)  # type: ignore[arg-type]
    assert execution_pb2.Execution.FromString(execution.SerializeToString()).status == 99
