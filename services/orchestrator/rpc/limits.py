"""LimitService: manages concurrency limits and rate limits."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import limit_service_pb2 as pb
from qflow.orchestrator.v1 import limit_service_pb2_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.orchestrator.storage.limits import StoredLimit, Subject
from services.orchestrator.usecases.limits import Allowed, LimitKeeper

Context = grpc.aio.ServicerContext[Any, Any]


class LimitServicer(limit_service_pb2_grpc.LimitServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, keeper: LimitKeeper) -> None:
        self._keeper = keeper

    async def CreateLimit(
        self, request: pb.CreateLimitRequest, context: Context
    ) -> pb.CreateLimitResponse:
        """Create a limit."""
        made = await self._keeper.create(
            current_caller(),
            request.name,
            _allowed(request),
            subject=Subject(
                workflow_id=codec.uuid_or_none(request.workflow_id, field="workflow_id"),
                node_id=codec.uuid_or_none(request.node_id, field="node_id"),
                owner_id=codec.uuid_or_none(request.owner_id, field="owner_id"),
                per_owner=request.per_owner,
            ),
        )
        return pb.CreateLimitResponse(limit=_limit(made))

    async def GetLimit(self, request: pb.GetLimitRequest, context: Context) -> pb.GetLimitResponse:
        """Return a limit."""
        found = await self._keeper.get(current_caller(), request.name)
        return pb.GetLimitResponse(limit=_limit(found))

    async def ListLimits(
        self, request: pb.ListLimitsRequest, context: Context
    ) -> pb.ListLimitsResponse:
        """List limits."""
        pages = Pages("orchestrator.ListLimits", request)
        found = await self._keeper.list(
            current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=_limit, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListLimitsResponse(limits=shown, next_page_token=token)

    async def UpdateLimit(
        self, request: pb.UpdateLimitRequest, context: Context
    ) -> pb.UpdateLimitResponse:
        """Change the amounts of a limit."""
        changed = await self._keeper.update(
            current_caller(), request.name, _allowed(request), etag=request.etag
        )
        return pb.UpdateLimitResponse(limit=_limit(changed))

    async def DeleteLimit(
        self, request: pb.DeleteLimitRequest, context: Context
    ) -> pb.DeleteLimitResponse:
        """Delete a limit."""
        await self._keeper.delete(current_caller(), request.name, etag=request.etag)
        return pb.DeleteLimitResponse()


def _allowed(request: pb.CreateLimitRequest | pb.UpdateLimitRequest) -> Allowed:
    body = type(request)()
    body.CopyFrom(request)  # type: ignore[arg-type]  # the types are the same
    body.request_id = ""
    digest = hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
    period_ms = request.period.ToMilliseconds() if request.HasField("period") else None
    return Allowed(
        max_running=request.max_running or None,
        max_starts=request.max_starts or None,
        period_ms=period_ms,
        key_expression=request.key_expression,
        request_id=codec.uuid_or_none(request.request_id, field="request_id"),
        request_digest=digest,
    )


def _limit(limit: StoredLimit) -> pb.Limit:
    period = None
    if limit.period_ms is not None:
        period = Duration()
        period.FromMilliseconds(limit.period_ms)
    return pb.Limit(
        name=limit.name,
        target=_target(limit),
        workflow_id=_text(limit.workflow_id),
        node_id=_text(limit.node_id),
        owner_id=_text(limit.owner_id),
        per_owner=limit.per_owner,
        max_running=limit.max_running or 0,
        max_starts=limit.max_starts or 0,
        period=period,
        key_expression=limit.key_expression,
        etag=limit.etag,
        created_by=str(limit.created_by),
        create_time=codec.timestamp(limit.created_at),
        updated_by=str(limit.updated_by),
        update_time=codec.timestamp(limit.updated_at),
    )


def _target(limit: StoredLimit) -> pb.LimitTarget.ValueType:
    if limit.workflow_id is not None:
        return pb.LIMIT_TARGET_WORKFLOW
    return pb.LIMIT_TARGET_TENANT if limit.node_id is None else pb.LIMIT_TARGET_NODE


def _text(of: UUID | None) -> str:
    return "" if of is None else str(of)
