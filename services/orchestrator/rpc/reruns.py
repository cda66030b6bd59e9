"""RerunService: makes new runs of earlier ones, one by one or in bulk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import grpc
from google.rpc import status_pb2
from qflow.orchestrator.v1 import rerun_service_pb2 as pb
from qflow.orchestrator.v1 import rerun_service_pb2_grpc

from services.kit.caller import current_caller
from services.kit.filter.language import Expression
from services.kit.idempotency import Replayed, RequestKey
from services.kit.rpc import codec as kit
from services.kit.rpc.errors import to_status
from services.kit.rpc.request_key import request_key
from services.orchestrator.domain.reuse import FromNode
from services.orchestrator.rpc import starting
from services.orchestrator.rpc.amounts import amounts
from services.orchestrator.usecases import batch
from services.orchestrator.usecases.batch import Chosen
from services.orchestrator.usecases.rerun import (
    FORK,
    RERUN,
    RETRY,
    RETRY_QUARANTINED,
    Again,
    Rerunner,
)

Context = grpc.aio.ServicerContext[Any, Any]


class RerunServicer(rerun_service_pb2_grpc.RerunServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, rerunner: Rerunner) -> None:
        self._rerunner = rerunner

    async def RetryExecution(
        self, request: pb.RetryExecutionRequest, context: Context
    ) -> pb.RetryExecutionResponse:
        """Retry a run from the beginning."""
        started, _ = await self._rerunner.make(current_caller(), _again(request, RETRY))
        shown = starting.execution(started, validate_only=request.validate_only)
        return pb.RetryExecutionResponse(execution=shown)

    async def RerunExecution(
        self, request: pb.RerunExecutionRequest, context: Context
    ) -> pb.RerunExecutionResponse:
        """Rerun some nodes of a run and keep the other results."""
        again = _again(request, RERUN, from_nodes=_from_nodes(request.from_nodes))
        started, kept = await self._rerunner.make(current_caller(), again)
        shown = starting.execution(started, validate_only=request.validate_only)
        return pb.RerunExecutionResponse(execution=shown, kept_results=kept)

    async def ForkExecution(
        self, request: pb.ForkExecutionRequest, context: Context
    ) -> pb.ForkExecutionResponse:
        """Fork a run: rerun from some nodes, with another input if given."""
        again = _again(
            request,
            FORK,
            from_nodes=_from_nodes(request.from_nodes),
            input_json=request.input_json if request.HasField("input_json") else None,
        )
        started, kept = await self._rerunner.make(current_caller(), again)
        shown = starting.execution(started, validate_only=request.validate_only)
        return pb.ForkExecutionResponse(execution=shown, kept_results=kept)

    async def RetryQuarantined(
        self, request: pb.RetryQuarantinedRequest, context: Context
    ) -> pb.RetryQuarantinedResponse:
        """Rerun the elements that maps quarantined."""
        again = _again(request, RETRY_QUARANTINED)
        started, kept = await self._rerunner.make(current_caller(), again)
        shown = starting.execution(started, validate_only=request.validate_only)
        return pb.RetryQuarantinedResponse(execution=shown, kept_results=kept)

    async def BatchCancelExecutions(
        self, request: pb.BatchCancelExecutionsRequest, context: Context
    ) -> pb.BatchCancelExecutionsResponse:
        """Request cancellation of many runs."""
        caller, dry = current_caller(), request.validate_only
        ids, more = await self._choose(request, batch.CANCELLABLE)
        items = await batch.cancel_many(self._rerunner, caller, ids, validate_only=dry)
        return pb.BatchCancelExecutionsResponse(items=map(_item, items), truncated=more)

    async def BatchRetryExecutions(
        self, request: pb.BatchRetryExecutionsRequest, context: Context
    ) -> pb.BatchRetryExecutionsResponse:
        """Retry many runs."""
        key = request_key(request, "orchestrator.BatchRetryExecutions", _kept)
        items, more = await self._made(request, RETRY, batch.FINISHED, key)
        return pb.BatchRetryExecutionsResponse(items=map(_item, items), truncated=more)

    async def BatchRerunExecutions(
        self, request: pb.BatchRerunExecutionsRequest, context: Context
    ) -> pb.BatchRerunExecutionsResponse:
        """Rerun many runs from the nodes that did not complete."""
        key = request_key(request, "orchestrator.BatchRerunExecutions", _kept)
        items, more = await self._made(request, RERUN, batch.BROKEN, key)
        return pb.BatchRerunExecutionsResponse(items=map(_item, items), truncated=more)

    async def _made(
        self, request: Any, relation: str, among: Expression, key: RequestKey[Chosen] | None
    ) -> tuple[list[batch.Item], bool]:
        caller, rerunner = current_caller(), self._rerunner
        found = await batch.choose_once(
            rerunner.reader, caller, key, lambda: self._choose(request, among)
        )
        if isinstance(found, Replayed):
            found = _chosen_from(found.response)
        items = await batch.make_many(
            rerunner,
            caller,
            found.ids,
            relation=relation,
            request_id=kit.uuid_or_none(request.request_id, field="request_id"),
            validate_only=request.validate_only,
        )
        return items, found.more

    async def _choose(self, request: Any, among: Expression) -> Chosen:
        named = enumerate(request.execution_ids)
        return await batch.choose(
            self._rerunner.reader,
            current_caller(),
            execution_ids=[kit.uuid_from(each, field=f"execution_ids[{at}]") for at, each in named],
            filter_text=request.filter,
            among=among,
        )


def _again(
    request: Any,
    relation: str,
    *,
    from_nodes: tuple[FromNode, ...] = (),
    input_json: str | None = None,
) -> Again:
    return Again(
        execution_id=kit.uuid_from(request.execution_id, field="execution_id"),
        relation=relation,
        request_id=kit.uuid_or_none(request.request_id, field="request_id"),
        validate_only=request.validate_only,
        from_nodes=from_nodes,
        input_json=input_json,
        budget=amounts(request.budget) if request.HasField("budget") else None,
    )


def _from_nodes(named: Iterable[pb.RerunNode]) -> tuple[FromNode, ...]:
    return tuple(
        FromNode(
            node_id=each.node,
            input_json=each.input_json,
            version=each.node_version if each.HasField("node_version") else None,
        )
        for each in named
    )


def _kept(chosen: Chosen) -> pb.BatchRetryExecutionsResponse:
    """Encode the runs of a batch, as stored under its request id."""
    items = (pb.BatchItem(execution_id=str(each)) for each in chosen.ids)
    return pb.BatchRetryExecutionsResponse(items=items, truncated=chosen.more)


def _chosen_from(kept: bytes) -> Chosen:
    message = pb.BatchRetryExecutionsResponse.FromString(kept)
    return Chosen([UUID(each.execution_id) for each in message.items], message.truncated)


def _item(item: batch.Item) -> pb.BatchItem:
    """Encode one result; of an error only the first detail, so that a thousand fit."""
    status = to_status(item.error) if item.error else status_pb2.Status()
    del status.details[1:]
    return pb.BatchItem(
        execution_id=str(item.execution_id),
        status=status,
        new_execution_id=str(item.new_execution_id or ""),
    )
