"""What callers are shown of an execution: all that it has, and nothing of what it has not."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from qflow.orchestrator.v1 import execution_pb2 as pb
from qflow.orchestrator.v1 import quota_pb2

from services.kit.rpc.codec import moment
from services.orchestrator.domain.amounts import Amounts
from services.orchestrator.domain.options import RunOptions
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.rpc import codec
from services.orchestrator.storage.executions import Execution, of_run
from services.orchestrator.usecases.launch import Started
from tests.unit.orchestrator.graphs import plan_of

_IDS: Final = [uuid.UUID(int=at) for at in range(1, 8)]
_AT: Final = [datetime(2026, 1, 2, 3, 4, 5, 678_901 + at, UTC) for at in range(6)]
# What always stands there.
_BARE: Final = Execution(
    id=_IDS[0],
    workflow_id=None,
    workflow_version=None,
    pins_id=_IDS[1],
    status=RunStatus.PENDING,
    revision=1,
    created_by=_IDS[2],
    created_at=None,
)


def test_what_an_execution_does_not_have_stays_absent() -> None:
    shown = codec.execution_to_pb(_BARE, plan_of([], 2))
    fields = {field.name for field, _ in shown.ListFields()}
    assert {"id", "status", "revision", "created_by", "node_counts"} == fields
    assert pb.NodeCounts(total=2, pending=2) == shown.node_counts


def test_every_field_of_an_execution_is_shown() -> None:
    whole = _BARE._replace(
        workflow_id=_IDS[3],
        workflow_version=7,
        status=RunStatus.FAILED,
        created_at=_AT[0],
        started_at=_AT[1],
        completed_at=_AT[2],
        cancel_requested_at=_AT[3],
        deadline_at=_AT[4],
        start_at=_AT[5],
        request_id=_IDS[4],
        error_type="user_error",
        error_message="no",
        failed_node_id="n0",
        exception_type="ValueError",
        error_stack_trace="trace",
        resource_usage={
            "cpu_us": 61_000_005,
            "memory_peak_bytes": 2,
            "io_read_bytes": 3,
            "io_write_bytes": 4,
        },
        input_data='{"x":1}',
        output_data='{"o":2}',
        business_key="order",
        labels={"a": "b"},
        priority=-3,
        parent_execution_id=_IDS[5],
        relation="retry",
        node_version_id=_IDS[6],
        python_version="3.11",
        container_id="box",
        ignores_cache=True,
        budget=Amounts(3, 4_000_000, None, 5),
        counts={"failed": 1, "quarantined": 1},
        parts=1,
    )
    shown = codec.execution_to_pb(whole, plan_of([], 3))
    missing = {each.name for each in shown.DESCRIPTOR.fields} - {
        field.name for field, _ in shown.ListFields()
    }
    assert {"output_file"} == missing, "a run gives its output inline"
    times = (shown.create_time, shown.start_time, shown.end_time)
    more = (shown.cancel_time, shown.deadline_time, shown.scheduled_start_time)
    assert _AT == [moment(each) for each in (*times, *more)]
    assert timedelta(seconds=61, microseconds=5) == shown.resource_usage.cpu_time.ToTimedelta()
    assert pb.NodeCounts(total=4, failed=2, skipped=2) == shown.node_counts
    assert {"a": "b"} == dict(shown.labels)
    budget = quota_pb2.ResourceAmounts(nodes=3, cpu_seconds=4, moved_bytes=5)
    assert budget == shown.budget


def test_a_run_that_began_is_shown_as_it_stands_and_without_its_values() -> None:
    run = Run(
        id=_IDS[0],
        plan=plan_of([], 1),
        tenant_id=_IDS[1],
        created_by=_IDS[2],
        status=RunStatus.PENDING,
        input_values={},
        options=RunOptions(labels={"a": "b"}),
    )
    started = Started(run, run.plan)
    run.status, run.revision = RunStatus.RUNNING, 2
    shown = started.execution
    assert (RunStatus.RUNNING, 2, {"a": "b"}) == (shown.status, shown.revision, shown.labels)
    assert shown.input_data is None
    assert shown is Started(shown, run.plan, existing=True).execution


def test_the_python_of_a_run_is_the_first_that_a_place_has_however_deep() -> None:
    """The same told from memory as from the row, also where no node stands first."""
    inner = plan_of([], 1)
    place = replace(inner.places[0], python_version="", sub=inner)
    outer = replace(inner, places=(place,))
    run = Run(
        id=_IDS[0],
        plan=outer,
        tenant_id=_IDS[1],
        created_by=_IDS[2],
        status=RunStatus.PENDING,
        input_values={},
    )
    expected = inner.places[0].python_version
    assert expected
    assert expected == of_run(run, with_values=False).python_version
