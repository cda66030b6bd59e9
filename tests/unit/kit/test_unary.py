"""Unary calls: what a server remembers of their messages, and when it tells of their ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from qflow.auth.v1 import auth_pb2
from qflow.orchestrator.v1 import schedule_service_pb2
from qflow.registry.v1 import session_service_pb2, workflow_service_pb2
from qflow.registry.v1.workflow_service_pb2 import GetWorkflowRequest

from services.kit.deadlines import Deadlines
from services.kit.errors import InvalidArgument
from services.kit.rpc import faults, unary, validate
from services.kit.rpc.call import Call, Limits, Method
from services.kit.rpc.tally import Tally

_ID = "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a"
_READ = Method(
    name="/qflow.registry.v1.WorkflowService/GetWorkflow",
    request=GetWorkflowRequest.DESCRIPTOR,
    requests_stream=False,
    responses_stream=False,
    reads=True,
    rule=auth_pb2.AuthRule(audiences=[auth_pb2.AUDIENCE_USER]),
    public=True,
    limits=Limits(),
)


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every message that was searched for faults."""
    seen: list[Any] = []
    find = faults.find_rule_faults

    def noted(message: Any) -> Any:
        seen.append(message)
        return find(message)

    monkeypatch.setattr(faults, "find_rule_faults", noted)
    return seen


def test_a_read_that_was_right_is_not_searched_again_and_is_a_message_of_its_own(
    searched: list[Any],
) -> None:
    read = validate.unary(GetWorkflowRequest.FromString, _READ)
    raw = GetWorkflowRequest(workflow_id=_ID).SerializeToString()
    first, second = read(raw), read(raw)
    assert (first, 1) == (second, len(searched))
    assert first is not second


def test_a_read_that_was_wrong_is_wrong_again(searched: list[Any]) -> None:
    read = validate.unary(GetWorkflowRequest.FromString, _READ)
    raws = [
        GetWorkflowRequest(workflow_id="no id").SerializeToString(),
        GetWorkflowRequest(workflow_id=_ID, version=-1).SerializeToString(),
        b"\xff",
    ]
    for raw in raws * 2:
        with pytest.raises(InvalidArgument):
            read(raw)
    assert 4 == len(searched)  # what cannot be read is not searched


def test_only_so_many_and_only_short_messages_are_remembered(searched: list[Any]) -> None:
    read = validate.unary(GetWorkflowRequest.FromString, _READ)
    kept = validate._REMEMBERED_MAX
    raws = [
        GetWorkflowRequest(workflow_id=_ID, version=at).SerializeToString()
        for at in range(1, kept + 2)
    ]
    for raw in raws:
        read(raw)
    read(raws[-1])
    assert kept + 1 == len(searched)
    read(raws[0])  # pushed out by the last
    assert kept + 2 == len(searched)
    long = raws[0] + b"\xa2\x06\xc8\x01" + b"x" * 200 + b"\xa2\x06\x40" + b"x" * 64
    for _ in range(2):
        read(long)
    assert kept + 4 == len(searched)


@pytest.mark.parametrize(
    "method",
    [
        replace(_READ, reads=False),
        replace(_READ, rule=auth_pb2.AuthRule(audiences=[auth_pb2.AUDIENCE_ANONYMOUS])),
    ],
    ids=["a change", "anybody's"],
)
def test_what_may_hold_a_secret_is_not_remembered(method: Method, searched: list[Any]) -> None:
    """X8."""
    read = validate.unary(GetWorkflowRequest.FromString, method)
    raw = GetWorkflowRequest(workflow_id=_ID).SerializeToString()
    read(raw), read(raw)
    assert 2 == len(searched)


def test_rules_that_may_look_at_a_clock_are_known_by_the_contract() -> None:
    """No message with a timestamp or an expression anywhere in it is taken for lasting."""
    assert faults.are_lasting(GetWorkflowRequest.DESCRIPTOR)
    seen = set()
    for module in (schedule_service_pb2, workflow_service_pb2, session_service_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            within = {each.full_name for each in _all_within(message)}
            asks = "google.protobuf.Timestamp" in within
            seen.add(asks)
            if asks:
                assert not faults.are_lasting(message), message.full_name
    assert {True, False} == seen


def _all_within(message: Any) -> list[Any]:
    found, waiting = {message.full_name: message}, [message]
    while waiting:
        for field in waiting.pop().fields:
            inner = field.message_type
            if inner is not None and inner.full_name not in found:
                found[inner.full_name] = inner
                waiting.append(inner)
    return list(found.values())


def test_enums_are_not_searched_where_their_rules_were_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B8: whatever rule is missing, a number that is no value is found."""
    searched: list[Any] = []

    def known(message: Any) -> bool:
        searched.append(message)
        return True

    monkeypatch.setattr(faults, "_is_known", known)
    message = GetWorkflowRequest(workflow_id=_ID)
    assert [] == faults.find_content_faults(message, has_nul=False, keeps_rules=True)
    assert not searched
    faults.find_content_faults(message, has_nul=False, keeps_rules=False)
    assert [message] == searched


def test_an_enum_without_a_rule_of_its_own_is_searched_for() -> None:
    """B8."""
    unruled = auth_pb2.AuthRule.DESCRIPTOR
    assert not faults._rules_tell_all(unruled)
    assert faults._rules_tell_all(GetWorkflowRequest.DESCRIPTOR)
    wrong = GetWorkflowRequest(workflow_id=_ID, view=77)  # type: ignore[arg-type]
    assert faults.find_rule_faults(wrong)
    assert faults.find_content_faults(wrong, has_nul=False, keeps_rules=False)


def _call() -> Call:
    task = asyncio.current_task()
    assert task is not None
    context = SimpleNamespace(time_remaining=lambda: None)
    return Call(_READ, cast("Any", context), (), task)


async def test_a_call_that_went_well_is_told_of_behind_its_answer() -> None:
    """gRPC sends the answer in the turn in which it is given; the line and the count come next."""
    tally = Tally()

    async def handle(_call: Call, _request: Any) -> bytes:
        return b"answer"

    serve = unary.outer(handle, _READ, Deadlines[asyncio.Task[Any]](asyncio.Task.cancel), tally)
    assert b"answer" == await serve(_call(), None)
    assert (1, 0) == (tally.open, tally.succeeded)
    await asyncio.sleep(0)
    assert (0, 1) == (tally.open, tally.succeeded)


async def test_a_call_that_failed_is_told_of_before_it_ends() -> None:
    tally = Tally()

    async def handle(_call: Call, _request: Any) -> bytes:
        raise grpc.aio.AbortError

    serve = unary.outer(handle, _READ, Deadlines[asyncio.Task[Any]](asyncio.Task.cancel), tally)
    with pytest.raises(grpc.aio.AbortError):
        await serve(_call(), None)
    assert (0, {"INTERNAL": 1}) == (tally.open, tally.failed)
