"""What user code raises arrives as data: its class, what is behind it, its own frames."""

from __future__ import annotations

from qflow.failure.v1 import failure_pb2
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.conftest import INT, Start
from tests.integration.runner.test_attach import attached, run, single

__all__ = ["orchestra"]

_CODE = """
class Broken(Exception):
    pass
def inner():
    try:
        return {}["k"]
    except KeyError as problem:
        raise Broken("outer") from problem
def main(x: int) -> int:
    try:
        inner()
    except Broken:
        raise RuntimeError("while handling")
    return x
"""


async def test_an_error_tells_its_class_its_causes_and_the_users_frames(
    orchestra: Orchestra,
) -> None:
    """On the node, on its attempt and in the log of errors."""
    async with orchestra.running(), attached(orchestra):
        done = await run(orchestra, single(orchestra, _CODE))
        answer = await orchestra.stub.ListNodeExecutions(
            pb.ListNodeExecutionsRequest(
                execution_id=done.id, view=execution_pb2.EXECUTION_VIEW_FULL
            )
        )
    assert execution_pb2.EXECUTION_STATUS_FAILED == done.status
    [node] = answer.node_executions
    error = node.error
    assert ("user_error", "RuntimeError") == (error.error_type, error.exception_type)
    assert [
        (failure_pb2.CAUSE_KIND_CONTEXT, "Broken", "outer"),
        (failure_pb2.CAUSE_KIND_CAUSE, "KeyError", "'k'"),
    ] == [(each.kind, each.exception_type, each.message) for each in error.causes]
    assert 'File "node.py", line 8, in inner' in error.stack_trace
    assert "agent" not in error.stack_trace
    for table in ("node_attempts", "error_logs"):
        assert [("RuntimeError", 2)] == orchestra.rows(
            "SELECT error_detail ->> 'exception', json_array_length(error_detail -> 'causes')"
            f" FROM {table}"
        )


async def test_a_group_of_exceptions_tells_of_its_members(start: Start) -> None:
    """B110: bounded, however they are nested."""
    box = await start(
        "def main(kind):\n"
        "    if kind == 1:\n"
        "        inner = ExceptionGroup('in', [OSError('b')])\n"
        "        raise ExceptionGroup('two', [ValueError('a'), inner])\n"
        "    group = ValueError('leaf')\n"
        "    for at in range(5000): group = ExceptionGroup(str(at), [group])\n"
        "    raise ExceptionGroup('wide', [group, *[KeyError(at) for at in range(5000)]])\n",
        inputs={"kind": INT},
    )
    error = await box.error(kind="1")
    assert "ExceptionGroup" == error["exception"]
    assert [("member", "ValueError", "a"), ("member", "OSError", "b")] == [
        (each["kind"], each["exception"], each["message"]) for each in error["causes"]
    ]
    assert "Member 2 of the group:" in error["traceback"]
    wide = await box.error(kind="2")
    assert len(wide["causes"]) <= 16
    assert len(wide["traceback"]) < 40_000
