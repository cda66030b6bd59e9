"""One run: wait for it, watch and control it. Broken connections are resumed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from google.protobuf.duration_pb2 import Duration

from qflow import values
from qflow.client.connection import Connection
from qflow.client.files import Files
from qflow.client.patience import Patience
from qflow.errors import DeadlineExceededError, UnavailableError
from qflow.exceptions import ExecutionFailedError
from qflow.orchestrator.v1 import (
    control_service_pb2,
    control_service_pb2_grpc,
    execution_pb2,
    execution_service_pb2,
    execution_service_pb2_grpc,
    explain_service_pb2,
    explain_service_pb2_grpc,
    rerun_service_pb2,
    rerun_service_pb2_grpc,
)
from qflow.runner.v1 import log_service_pb2, log_service_pb2_grpc
from qflow.types import ANY, Type

R = TypeVar("R")

FINAL: Final = frozenset(
    {
        execution_pb2.EXECUTION_STATUS_COMPLETED,
        execution_pb2.EXECUTION_STATUS_FAILED,
        execution_pb2.EXECUTION_STATUS_CANCELLED,
    }
)
_WAIT_S: Final = 50


@dataclass(frozen=True, slots=True)
class Reading:
    """How to decode the outputs of a run: types, classes, and the final value."""

    types: Mapping[str, Type] = field(default_factory=dict)
    classes: values.Classes = field(default_factory=dict)
    build: Callable[[dict[str, Any]], Any] = dict
    # Codecs by output, compiled on first use.
    _codecs: dict[str, values.Codec] = field(default_factory=dict, compare=False)

    def value(self, name: str, plain: Any) -> Any:
        """Decode the JSON value of an output."""
        codec = self._codecs.get(name)
        if codec is None:
            codec = values.Codec(self.types.get(name, ANY), self.classes)
            self._codecs[name] = codec
        return codec.from_plain(plain, name=f"output {name}")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a run: its present state, and the nodes that changed."""

    execution: execution_pb2.Execution
    nodes: tuple[execution_pb2.NodeExecution, ...]
    revision: int


class Run(Generic[R]):
    """A run on a Qflow; `Client.attach` returns it for its `id`."""

    def __init__(
        self, connection: Connection, execution_id: str, reading: Reading | None = None
    ) -> None:
        self.id = execution_id
        self._connection = connection
        self._reading = reading or Reading()
        self._address = connection.context.orchestrator
        self._executions = connection.stub(
            "orchestrator", execution_service_pb2_grpc.ExecutionServiceStub
        )
        self._control = connection.stub("orchestrator", control_service_pb2_grpc.ControlServiceStub)

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    async def result(self, *, timeout_s: float | None = None) -> R:
        """Wait for the end and return the result.

        Raises ExecutionFailedError if it failed or was cancelled, DeadlineExceededError on timeout;
        the run then goes on.
        """
        execution = await self.wait(timeout_s=timeout_s)
        if execution.status != execution_pb2.EXECUTION_STATUS_COMPLETED:
            raise _failed(execution)
        return await self._read(execution.output_json)

    async def wait(self, *, timeout_s: float | None = None) -> execution_pb2.Execution:
        """Wait until the run has ended, however it ended, and return it."""
        loop = asyncio.get_running_loop()
        ends_at = None if timeout_s is None else loop.time() + timeout_s
        pause = Patience()
        while True:
            left = _WAIT_S if ends_at is None else min(_WAIT_S, ends_at - loop.time())
            if left <= 0:
                raise DeadlineExceededError(f"the run {self.id} is not over after {timeout_s} s")
            waiting = Duration()
            waiting.FromMilliseconds(max(1, int(left * 1000)))
            request = execution_service_pb2.WaitExecutionRequest(
                execution_id=self.id, timeout=waiting, view=execution_pb2.EXECUTION_VIEW_FULL
            )
            try:
                answer = await self._connection.call(
                    self._executions.WaitExecution,
                    request,
                    timeout_s=left + 10,
                    address=self._address,
                )
            except UnavailableError as error:
                if ends_at is not None and loop.time() >= ends_at:
                    raise
                await pause.wait(error)
                continue
            if answer.done:
                execution: execution_pb2.Execution = answer.execution
                return execution
            pause = Patience()

    async def watch(self, *, after_revision: int = 0) -> AsyncIterator[Change]:
        """Yield the changes of the run until it has ended; resumes after a broken connection.

        With `after_revision` it continues after a change seen before.
        """
        revision = after_revision
        execution = execution_pb2.Execution(id=self.id)
        pause = Patience()
        failed: UnavailableError | None = None
        while execution.status not in FINAL:
            request = execution_service_pb2.WatchExecutionRequest(
                execution_id=self.id, after_revision=revision
            )
            steps = self._connection.stream(
                self._executions.WatchExecution, request, address=self._address
            )
            try:
                async for step in steps:
                    pause = Patience()
                    revision = step.revision
                    event = step.snapshot if step.HasField("snapshot") else step.delta
                    if event.HasField("execution"):
                        execution = event.execution
                    if event.HasField("execution") or event.node_executions:
                        yield Change(execution, tuple(event.node_executions), revision)
                if execution.status not in FINAL:
                    # It may have ended at that revision already.
                    execution = await self.get()
            except UnavailableError as error:
                failed = error
            if execution.status not in FINAL:  # interrupted, or the server is stopping
                await pause.wait(failed)

    async def get(self) -> execution_pb2.Execution:
        """Return the run."""
        request = execution_service_pb2.GetExecutionRequest(execution_id=self.id)
        answer = await self._call(self._executions.GetExecution, request)
        execution: execution_pb2.Execution = answer.execution
        return execution

    async def nodes(self) -> AsyncIterator[execution_pb2.NodeExecution]:
        """Yield the nodes of the run in the order of its definition, with outputs and traces."""
        request = execution_service_pb2.ListNodeExecutionsRequest(
            execution_id=self.id, page_size=500, view=execution_pb2.EXECUTION_VIEW_FULL
        )
        pages = self._connection.pages(
            self._executions.ListNodeExecutions, request, "node_executions", address=self._address
        )
        async for each in pages:
            yield each

    async def cancel(self) -> execution_pb2.Execution:
        """Request cancellation of the run; idempotent."""
        request = execution_service_pb2.CancelExecutionRequest(execution_id=self.id)
        answer = await self._call(self._executions.CancelExecution, request)
        execution: execution_pb2.Execution = answer.execution
        return execution

    async def pause(self, place: str = "") -> None:
        """Pause the run, or only one node."""
        if place:
            request = control_service_pb2.PauseNodeRequest(execution_id=self.id, node=place)
            await self._call(self._control.PauseNode, request)
            return
        whole = control_service_pb2.PauseExecutionRequest(execution_id=self.id)
        await self._call(self._control.PauseExecution, whole)

    async def resume(self, place: str = "") -> None:
        """Resume the run, or only one node."""
        if place:
            request = control_service_pb2.ResumeNodeRequest(execution_id=self.id, node=place)
            await self._call(self._control.ResumeNode, request)
            return
        whole = control_service_pb2.ResumeExecutionRequest(execution_id=self.id)
        await self._call(self._control.ResumeExecution, whole)

    async def skip(self, place: str, outputs: Mapping[str, Any] | None = None) -> None:
        """End a node that is not running: as completed with these outputs, or as skipped.

        Outputs are plain JSON values by name, checked by the service.
        """
        request = control_service_pb2.SkipNodeRequest(
            execution_id=self.id,
            node=place,
            output_json="" if outputs is None else values.dump(dict(outputs)),
        )
        await self._call(self._control.SkipNode, request)

    async def retry(self) -> Run[R]:
        """Run everything again, as a new run with the same input.

        That includes completed nodes and their side effects; `rerun` keeps their results.
        """
        request = rerun_service_pb2.RetryExecutionRequest(
            execution_id=self.id, request_id=str(uuid.uuid4())
        )
        return await self._again("RetryExecution", request)

    async def retry_quarantined(self) -> Run[R]:
        """Rerun the elements that maps quarantined, as a new run that keeps all other results."""
        request = rerun_service_pb2.RetryQuarantinedRequest(
            execution_id=self.id, request_id=str(uuid.uuid4())
        )
        return await self._again("RetryQuarantined", request)

    async def rerun(self, places: Sequence[str] = (), *, newest: bool = False) -> Run[R]:
        """Rerun from these nodes, as a new run that keeps the results before them.

        By default from the failed ones; `newest` uses the current versions of these nodes.
        """
        request = rerun_service_pb2.RerunExecutionRequest(
            execution_id=self.id, request_id=str(uuid.uuid4())
        )
        for place in places:
            one = request.from_nodes.add(node=place)
            if newest:
                one.node_version = 0
        return await self._again("RerunExecution", request)

    async def fork(self, places: Sequence[str] = (), *, input_json: str | None = None) -> Run[R]:
        """Fork: a new run beside this one, which may still be open.

        It keeps the present results, except those of these nodes, of nodes that read an input which
        `input_json` changes, and of all their descendants. `input_json` holds all inputs by name.
        """
        request = rerun_service_pb2.ForkExecutionRequest(
            execution_id=self.id, request_id=str(uuid.uuid4()), input_json=input_json
        )
        for place in places:
            request.from_nodes.add(node=place)
        return await self._again("ForkExecution", request)

    async def _again(self, method: str, request: Any) -> Run[R]:
        stub = self._connection.stub("orchestrator", rerun_service_pb2_grpc.RerunServiceStub)
        answer = await self._call(getattr(stub, method), request)
        return Run(self._connection, answer.execution.id, self._reading)

    async def signal(self, name: str, value: Any, *, type: type[Any] | None = None) -> None:
        """Send a signal."""
        request = control_service_pb2.SendSignalRequest(
            execution_id=self.id,
            name=name,
            payload_json=_encoded(value, type, name=f"signal {name}"),
            request_id=str(uuid.uuid4()),
        )
        await self._call(self._control.SendSignal, request)

    async def answer(
        self, name: str, *, approved: bool, comment: str = "", reply: Any = None
    ) -> None:
        """Answer an approval."""
        request = control_service_pb2.AnswerApprovalRequest(
            execution_id=self.id,
            name=name,
            approved=approved,
            comment=comment,
            reply_json="" if reply is None else _encoded(reply, None, name=f"reply to {name}"),
            request_id=str(uuid.uuid4()),
        )
        await self._call(self._control.AnswerApproval, request)

    async def explain(self) -> list[explain_service_pb2.ExecutionReason]:
        """Return why the run is not moving or why it failed, and the shortest action that helps."""
        stub = self._connection.stub("orchestrator", explain_service_pb2_grpc.ExplainServiceStub)
        request = explain_service_pb2.ExplainExecutionRequest(execution_id=self.id)
        return list((await self._call(stub.ExplainExecution, request)).reasons)

    async def logs(self, *, follow: bool = False) -> AsyncIterator[log_service_pb2.LogLine]:
        """Yield the log lines of the nodes, in order; `follow` continues to the end of the run."""
        stub = self._connection.stub("runner", log_service_pb2_grpc.LogServiceStub)
        address = self._connection.context.runner
        if not follow:
            listing = log_service_pb2.ListLogsRequest(execution_id=self.id, page_size=1000)
            async for line in self._connection.pages(
                stub.ListLogs, listing, "lines", address=address
            ):
                yield line
            return
        request = log_service_pb2.WatchLogsRequest(execution_id=self.id)
        pause = Patience()
        failed: UnavailableError | None = None
        while True:
            try:
                async for step in self._connection.stream(stub.WatchLogs, request, address=address):
                    pause = Patience()
                    for line in step.lines:
                        yield line
                    request.after_sequence = step.sequence
                    if step.end:
                        return
            except UnavailableError as error:
                failed = error
            await pause.wait(failed)  # interrupted, or the server is stopping

    async def _read(self, text: str) -> R:
        """Decode the outputs; large ones are downloaded."""
        plain = values.parse(text)
        for name, each in plain.items():
            if isinstance(each, dict) and each.keys() == {"$file", "field", "size_bytes"}:
                stored = await Files(self._connection).read(each["$file"])
                plain[name] = values.parse(stored.decode())[each["field"]]
        reading = self._reading
        read = {name: reading.value(name, each) for name, each in plain.items()}
        made: R = reading.build(read)
        return made

    async def _call(self, method: Callable[..., Any], request: Any) -> Any:
        return await self._connection.call(method, request, address=self._address)


def _failed(execution: execution_pb2.Execution) -> ExecutionFailedError:
    if execution.status == execution_pb2.EXECUTION_STATUS_CANCELLED:
        return ExecutionFailedError(
            "the run was cancelled", execution_id=execution.id, error_type="cancelled"
        )
    error = execution.error
    return ExecutionFailedError(
        error.message,
        execution_id=execution.id,
        error_type=error.error_type,
        node_id=error.node_id,
        stack_trace=error.stack_trace,
    )


def _encoded(value: Any, of: type[Any] | None, *, name: str) -> str:
    from qflow.authoring.annotations import type_of

    if of is None and value is not None:
        of = type(value) if not isinstance(value, dict | list | tuple) else None
    if of is None:
        return values.encode(value, ANY, name=name)
    return values.encode(value, type_of(of), name=name, classes=values.classes_in(of))
