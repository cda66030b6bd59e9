"""What the demo prints of a node that runs."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from qflow.orchestrator.v1 import execution_pb2

from examples import show

RUNNING = execution_pb2.NODE_EXECUTION_STATUS_RUNNING
COMPLETED = execution_pb2.NODE_EXECUTION_STATUS_COMPLETED


def test_a_running_node_shows_the_time_since_its_start() -> None:
    start = Timestamp(seconds=1_000)
    node = execution_pb2.NodeExecution(status=RUNNING, start_time=start)
    assert "2.5 s" == show.took(node, now_ms=1_002_500)
    assert "0.0 s" == show.took(node, now_ms=999_000)  # its clock is ahead of ours
    assert "" == show.took(node)  # a line of a pipe is not drawn anew


def test_a_finished_node_shows_what_it_took() -> None:
    start, end = Timestamp(seconds=1_000), Timestamp(seconds=1_001, nanos=234_000_000)
    node = execution_pb2.NodeExecution(status=COMPLETED, start_time=start, end_time=end)
    assert "1,234 ms" == show.took(node, now_ms=9_999_999)
    assert "" == show.took(execution_pb2.NodeExecution(), now_ms=1)
