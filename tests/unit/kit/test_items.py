"""Lists whose items are checked one by one, by who takes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from qflow.auth.v1 import auth_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit.errors import InvalidArgument, NotFound
from services.kit.rpc import validate
from services.kit.rpc.call import Limits, Method
from services.kit.rpc.errors import to_status

_ID = "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a"
_BATCH = Method(
    name="/qflow.orchestrator.v1.ExecutionService/BatchStartExecutions",
    request=pb.BatchStartExecutionsRequest.DESCRIPTOR,
    requests_stream=False,
    responses_stream=False,
    reads=False,
    rule=auth_pb2.AuthRule(audiences=[auth_pb2.AUDIENCE_USER]),
    public=True,
    limits=Limits(),
)
_ALONE = replace(_BATCH, request=pb.StartExecutionRequest.DESCRIPTOR)
_WRONG: list[dict[str, Any]] = [
    {"workflow_id": "x"},
    {"workflow_id": _ID, "input_json": "a\0b"},
    {"workflow_id": _ID, "business_key_conflict": cast("Any", 99)},
    {"workflow_id": _ID, "labels": {f"l{n}": "" for n in range(65)}},
    {"workflow_id": "x", "priority": 101, "labels": {"A": "\0"}},
]


@pytest.mark.parametrize("wrong", _WRONG)
def test_an_item_is_refused_alone_in_the_words_of_the_single_call(wrong: dict[str, Any]) -> None:
    item = pb.StartExecutionRequest(**wrong)
    whole = pb.BatchStartExecutionsRequest(starts=[item])
    read = validate.unary(pb.BatchStartExecutionsRequest.FromString, _BATCH)
    assert whole == read(whole.SerializeToString())
    with pytest.raises(InvalidArgument) as of_item:
        validate.check_item(item)
    with pytest.raises(InvalidArgument) as of_single:
        validate.unary(pb.StartExecutionRequest.FromString, _ALONE)(item.SerializeToString())
    assert to_status(of_single.value) == to_status(of_item.value)


def test_what_is_right_is_right_alone() -> None:
    validate.check_item(pb.StartExecutionRequest(workflow_id=_ID, input_json="{}"))


def test_a_status_keeps_to_its_room() -> None:
    error = NotFound("GONE", "🜁" * 2000, resource=("workflow", _ID))
    for room in (512, 3000, 6144):
        status = to_status(error, bytes_max=room)
        assert status.ByteSize() <= room + 16  # the message alone may fill it
        assert status.message
