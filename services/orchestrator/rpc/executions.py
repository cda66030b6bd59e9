"""ExecutionService: starts, shows, watches and cancels runs of workflows."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Final

import grpc
from qflow.orchestrator.v1 import execution_pb2, execution_service_pb2_grpc
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit.caller import current_caller
from services.kit.rpc import codec as kit
from services.kit.rpc.deadline import draining
from services.kit.rpc.pages import Pages
from services.kit.rpc.sizes import in_parts
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.hub import Moved
from services.orchestrator.gateways.peers import PeerGone
from services.orchestrator.rpc import codec, starting
from services.orchestrator.rpc.batch_starting import start_batch
from services.orchestrator.rpc.forwarding import follow, may_be_forwarded
from services.orchestrator.storage.executions import Execution
from services.orchestrator.usecases import listing
from services.orchestrator.usecases.cancel import cancel_execution
from services.orchestrator.usecases.forward import Router, owner_gone
from services.orchestrator.usecases.read import Reader, Shown
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.watch import Step, Watcher

Context = grpc.aio.ServicerContext[Any, Any]

# How often and how long a watch looks for the new owner of its run: longer than a takeover takes.
_LOOK_AGAIN_S: Final = 0.25
_OWNER_WAIT_S: Final = 20.0
_BASIC: Final = execution_pb2.EXECUTION_VIEW_BASIC
_FULL: Final = execution_pb2.EXECUTION_VIEW_FULL
# Limits of one message of a watch, which may also hold the run's input and output.
_PART_NODES_MAX: Final = 500
_PART_BYTES_MAX: Final = 1024 * 1024
# Encoded deltas kept for other watchers of the same run: few and small, since soon outdated.
_SHARED_MAX: Final = 32
_SHARED_NODES_MAX: Final = 50
_SHARED_OUTPUT_MAX: Final = 64 * 1024


class ExecutionServicer(execution_service_pb2_grpc.ExecutionServiceServicer):
    """Decodes, calls one use case, encodes."""

    service: str = "qflow.orchestrator.v1.ExecutionService"

    def __init__(
        self,
        *,
        starter: Starter,
        reader: Reader,
        engine: Engine,
        router: Router,
        watcher: Watcher,
    ) -> None:
        self.router = router
        self._starter = starter
        self._reader = reader
        self._engine = engine
        self._watcher = watcher
        self._deltas = _Deltas()

    async def StartExecution(
        self, request: pb.StartExecutionRequest, context: Context
    ) -> pb.StartExecutionResponse:
        """Start a run; it is committed when this returns."""
        started = await starting.start(self._starter, request)
        return pb.StartExecutionResponse(
            execution=starting.execution(started, validate_only=request.validate_only),
            existing=started.existing,
        )

    async def BatchStartExecutions(
        self, request: pb.BatchStartExecutionsRequest, context: Context
    ) -> pb.BatchStartExecutionsResponse:
        """Start many runs; those that were accepted are committed when this returns."""
        return await start_batch(self._starter, request.starts)

    async def GetExecution(
        self, request: pb.GetExecutionRequest, context: Context
    ) -> pb.GetExecutionResponse:
        """Return one run."""
        execution_id = kit.uuid_from(request.execution_id, field="execution_id")
        execution, plan = await self._reader.get(
            current_caller(), execution_id, full=request.view != _BASIC
        )
        return pb.GetExecutionResponse(execution=codec.execution_to_pb(execution, plan))

    async def ListExecutions(
        self, request: pb.ListExecutionsRequest, context: Context
    ) -> pb.ListExecutionsResponse:
        """Return a page of runs."""
        workflow_id = kit.uuid_or_none(request.workflow_id, field="workflow_id")
        statuses = sorted({codec.RUN_STATUS_BY_NUMBER[each] for each in request.statuses})
        asked = listing.asked_from(
            filter_text=request.filter,
            order_by=request.order_by,
            workflow_id=workflow_id,
            statuses=statuses,
        )
        words = (request.filter, request.order_by, request.view)
        pages = Pages("ListExecutions", request, workflow_id, *words, *statuses)
        caller, reader = current_caller(), self._reader
        full = request.view == _FULL
        found = await listing.find(
            reader,
            caller,
            asked,
            after=pages.after_key(asked.order.field.key_type),
            limit=pages.limit,
            full=full,
        )
        shown, token = await pages.cut_found(
            found,
            read=lambda ids: listing.read(reader, caller, ids, full=full),
            encode=lambda each: codec.execution_to_pb(each.execution, each.plan),
        )
        return pb.ListExecutionsResponse(executions=shown, next_page_token=token)

    async def ListNodeExecutions(
        self, request: pb.ListNodeExecutionsRequest, context: Context
    ) -> pb.ListNodeExecutionsResponse:
        """Return a page of a run's nodes."""
        execution_id = kit.uuid_from(request.execution_id, field="execution_id")
        pages = Pages("ListNodeExecutions", request, execution_id)
        nodes = await self._reader.list_nodes(
            current_caller(),
            execution_id,
            after=Shown(*pages.after_two()),
            limit=pages.limit,
            full=request.view == _FULL,
        )
        shown, token = await pages.cut(
            nodes,
            encode=lambda each: codec.node_to_pb(str(execution_id), each[1]),
            key=lambda each: each[0],
        )
        return pb.ListNodeExecutionsResponse(node_executions=shown, next_page_token=token)

    @may_be_forwarded
    async def WaitExecution(
        self, request: pb.WaitExecutionRequest, context: Context
    ) -> pb.WaitExecutionResponse:
        """Return a run once it has ended or on timeout; follows the run to another orchestrator."""
        timeout_s = starting.WAIT_DEFAULT_S
        if request.HasField("timeout"):
            timeout_s = kit.milliseconds_from(request.timeout, field="timeout") / 1000
        execution, plan = await self._watcher.wait(
            current_caller(),
            kit.uuid_from(request.execution_id, field="execution_id"),
            timeout_s=timeout_s,
            full=request.view != _BASIC,
        )
        if self._engine.hub.leaving and not execution.final:
            raise draining()  # before the timeout: the client resumes at another orchestrator
        return pb.WaitExecutionResponse(
            execution=codec.execution_to_pb(execution, plan), done=execution.final
        )

    @may_be_forwarded
    async def WatchExecution(
        self, request: pb.WatchExecutionRequest, context: Context
    ) -> AsyncIterator[pb.WatchExecutionResponse]:
        """Stream a snapshot, then every change to the end; follows the run to its next owner."""
        seen, whole = request.after_revision, False
        gives_up_at: float | None = None
        while True:
            asked = pb.WatchExecutionRequest(execution_id=request.execution_id, after_revision=seen)
            begun = False
            try:
                async with aclosing(self._watched(asked)) as messages:
                    async for message in messages:
                        begun, gives_up_at = True, None
                        seen = max(seen, message.revision)
                        if message.HasField("bookmark") and whole:
                            continue  # of a resumed watch: the client has had its bookmark
                        whole = whole or message.WhichOneof("event") != "snapshot"
                        yield message
                return
            except (PeerGone, Moved):
                now = self._engine.now()
                gives_up_at = gives_up_at or now + _OWNER_WAIT_S
                # A snapshot that broke off cannot be resumed: the client has to start again.
                if (begun and not whole) or now >= gives_up_at:
                    raise owner_gone() from None
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def _watched(
        self, request: pb.WatchExecutionRequest
    ) -> AsyncGenerator[pb.WatchExecutionResponse, None]:
        """Watch the run at its present owner."""
        elsewhere = await follow(self, "WatchExecution", request)
        if elsewhere is not None:
            async for message in elsewhere:
                yield message
            return
        execution_id = kit.uuid_from(request.execution_id, field="execution_id")
        steps = self._watcher.watch(
            current_caller(), execution_id, after_revision=request.after_revision
        )
        async for step in steps:
            for message in self._deltas.messages(str(execution_id), step):
                yield message

    @may_be_forwarded
    async def CancelExecution(
        self, request: pb.CancelExecutionRequest, context: Context
    ) -> pb.CancelExecutionResponse:
        """Request cancellation of a run."""
        execution, plan = await cancel_execution(
            self._reader,
            self.router,
            current_caller(),
            kit.uuid_from(request.execution_id, field="execution_id"),
        )
        return pb.CancelExecutionResponse(execution=codec.execution_to_pb(execution, plan))


class _Deltas:
    """A cache of encoded deltas: watchers of a run that keep up all get the same ones."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], list[pb.WatchExecutionResponse]]
        self._known = OrderedDict()

    def messages(self, execution_id: str, step: Step) -> Iterable[pb.WatchExecutionResponse]:
        """Encode a step, reusing the messages made for others who saw the same before it."""
        execution = step.execution
        if step.kind != "delta" or execution is None or not _is_small(execution, step):
            return _messages(execution_id, step)
        # A delta is determined by the run and the revisions between which it lies.
        key = (execution_id, step.seen, step.revision, execution.status, len(step.nodes))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = list(_messages(execution_id, step))
            if len(self._known) > _SHARED_MAX:
                self._known.popitem(last=False)
        return known


def _is_small(execution: Execution, step: Step) -> bool:
    output_chars = len(execution.output_data or "")
    return output_chars <= _SHARED_OUTPUT_MAX and len(step.nodes) <= _SHARED_NODES_MAX


def _messages(execution_id: str, step: Step) -> Iterator[pb.WatchExecutionResponse]:
    """Encode a step in as many messages as its nodes need; one of them has the execution."""
    if step.kind == "bookmark":
        yield pb.WatchExecutionResponse(revision=step.revision, bookmark=pb.WatchBookmark())
    elif step.kind == "progress":
        yield pb.WatchExecutionResponse(revision=step.revision, progress=pb.WatchProgress())
    elif step.kind == "snapshot":
        execution = _execution(step)
        for part in _parts(execution_id, step):
            snapshot = pb.WatchSnapshot(execution=execution, node_executions=part)
            yield pb.WatchExecutionResponse(revision=step.revision, snapshot=snapshot)
            execution = None
    else:
        *parts, last = _parts(execution_id, step)
        for part in parts:
            # The old revision: a watcher that is cut off here must get the whole delta again.
            delta = pb.WatchDelta(node_executions=part)
            yield pb.WatchExecutionResponse(revision=step.seen, delta=delta)
        delta = pb.WatchDelta(execution=_execution(step), node_executions=last)
        yield pb.WatchExecutionResponse(revision=step.revision, delta=delta)


def _parts(execution_id: str, step: Step) -> Iterator[list[execution_pb2.NodeExecution]]:
    nodes = (codec.node_to_pb(execution_id, node) for node in step.nodes)
    return in_parts(nodes, limit=_PART_NODES_MAX, bytes_max=_PART_BYTES_MAX)


def _execution(step: Step) -> execution_pb2.Execution | None:
    if step.execution is None or step.plan is None:
        return None
    return codec.execution_to_pb(step.execution, step.plan)
