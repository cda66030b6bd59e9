"""Spans that are kept are whole milliseconds, and the contract says so of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import execution_service_pb2, limit_service_pb2, schedule_pb2
from qflow.registry.v1 import workflow_pb2 as pb

from services.orchestrator.rpc.limits import _allowed
from services.orchestrator.rpc.schedule_codec import definition_from
from services.orchestrator.rpc.starting import timeout_ms
from services.registry.rpc import workflow_codec

_PROTOS: Final = Path(__file__).parents[2] / "protos" / "qflow"
_FIELD: Final = re.compile(r"((?: *//[^\n]*\n)+) *google\.protobuf\.Duration (\w+) =")
_MESSAGES: Final = (
    "registry/v1/workflow.proto",
    "orchestrator/v1/schedule.proto",
    "orchestrator/v1/limit_service.proto",
)
FINE: Final = Duration(seconds=120, nanos=1_999_999)
KEPT: Final = Duration(seconds=120, nanos=1_000_000)


@pytest.mark.parametrize("name", _MESSAGES)
def test_the_contract_says_of_each_that_it_is_cut(name: str) -> None:
    found = _FIELD.findall((_PROTOS / name).read_text())
    assert found
    said = {field for comment, field in found if "millisecond" in re.sub(r"\W+", " ", comment)}
    assert {field for _, field in found} == said


def test_what_a_workflow_keeps_is_cut() -> None:
    node = pb.WorkflowNode(
        id="a",
        node_id=str(UUID(int=1)),
        timeout=FINE,
        queue_timeout=FINE,
        total_timeout=FINE,
        cache_ttl=FINE,
        heartbeat_timeout=FINE,
        retry=pb.RetryPolicy(initial_delay=FINE, max_delay=FINE),
    )
    waits = [
        pb.WorkflowNode(id="b", signal=pb.NodeSignal(name="s", wait_timeout=FINE)),
        pb.WorkflowNode(id="c", approval=pb.NodeApproval(name="s", wait_timeout=FINE)),
    ]
    settings = pb.WorkflowSettings(timeout=FINE)
    definition = pb.WorkflowDefinition(nodes=[node, *waits], settings=settings)
    kept = workflow_codec.definition_to_pb(workflow_codec.definition_from_pb(definition))
    one, signal, approval = kept.nodes
    spans = [
        *(one.timeout, one.queue_timeout, one.total_timeout, one.cache_ttl, one.heartbeat_timeout),
        *(one.retry.initial_delay, one.retry.max_delay, kept.settings.timeout),
        *(signal.signal.wait_timeout, approval.approval.wait_timeout),
    ]
    assert [KEPT] * len(spans) == spans


def test_what_a_schedule_a_limit_and_a_start_keep_is_cut() -> None:
    timing = schedule_pb2.ScheduleTiming(jitter=FINE)
    timing.interval.every.seconds = 300
    given = schedule_pb2.ScheduleDefinition(name="n", timing=timing, catch_up_window=FINE)
    kept = definition_from(given)
    assert [120_001, 120_001] == [kept.timing.jitter_ms, kept.catch_up_window_ms]
    limit = limit_service_pb2.CreateLimitRequest(name="n", max_starts=1, period=FINE)
    assert 120_001 == _allowed(limit).period_ms
    assert 120_001 == timeout_ms(execution_service_pb2.StartExecutionRequest(timeout=FINE))
