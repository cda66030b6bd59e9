"""PeerService: executes calls that other orchestrators forward."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from qflow.auth.v1 import auth_pb2
from qflow.orchestrator.v1 import peer_service_pb2 as pb
from qflow.orchestrator.v1 import peer_service_pb2_grpc

from services.kit.caller import caller_scope
from services.kit.errors import InvalidArgument
from services.kit.rpc import auth, codec
from services.kit.rpc.identity import Authenticator, Credential
from services.orchestrator.rpc.forwarding import Routed, method_of
from services.orchestrator.usecases.forward import forwarded
from services.orchestrator.usecases.overlaps import Overlaps
from services.orchestrator.usecases.watch import Watcher

Context = grpc.aio.ServicerContext[Any, Any]


class PeerServicer(peer_service_pb2_grpc.PeerServiceServicer):
    """Executes forwarded calls as their original callers, under the same auth rules."""

    def __init__(
        self,
        authenticator: Authenticator,
        servicers: Sequence[Routed],
        *,
        watcher: Watcher,
        overlaps: Overlaps,
    ) -> None:
        self._authenticator = authenticator
        self._watcher = watcher
        self._overlaps = overlaps
        self._servicers = {each.service: each for each in servicers}

    async def ForwardCall(
        self, request: pb.ForwardCallRequest, context: Context
    ) -> pb.ForwardCallResponse:
        """Execute a forwarded unary call."""
        handler, inner, rule = self._found(request.method, request.request, streams=False)
        caller = await self._authenticator.authenticate(_credential(request))
        auth.check(caller, rule)
        with caller_scope(caller), forwarded():
            response = await handler(inner, context)
        return pb.ForwardCallResponse(response=response.SerializeToString())

    async def ForwardStream(
        self, request: pb.ForwardStreamRequest, context: Context
    ) -> AsyncIterator[pb.ForwardStreamResponse]:
        """Execute a forwarded streaming call."""
        handler, inner, rule = self._found(request.method, request.request, streams=True)
        caller = await self._authenticator.authenticate(_credential(request))
        auth.check(caller, rule)
        with caller_scope(caller), forwarded():
            async with aclosing(handler(inner, context)) as responses:
                async for response in responses:
                    yield pb.ForwardStreamResponse(response=response.SerializeToString())

    async def AwaitEnd(self, request: pb.AwaitEndRequest, context: Context) -> pb.AwaitEndResponse:
        """Wait until a run ends or moves."""
        execution_id = codec.uuid_from(request.execution_id, field="execution_id")
        timeout_s = codec.milliseconds_from(request.timeout, field="timeout") / 1000
        waiting = self._watcher.await_end(execution_id, timeout_s=timeout_s)
        await self._watcher.engine.hub.waited(waiting)
        return pb.AwaitEndResponse()

    async def CancelOverlapping(
        self, request: pb.CancelOverlappingRequest, context: Context
    ) -> pb.CancelOverlappingResponse:
        """Request cancellation of a run because the next one of its schedule is due."""
        with forwarded():
            await self._overlaps.cancel(
                codec.uuid_from(request.schedule_id, field="schedule_id"),
                codec.uuid_from(request.execution_id, field="execution_id"),
            )
        return pb.CancelOverlappingResponse()

    def _found(
        self, method: str, raw: bytes, *, streams: bool
    ) -> tuple[Callable[[Any, Context], Any], Any, auth_pb2.AuthRule]:
        _, _, path = method.partition("/")
        service, _, name = path.partition("/")
        servicer = self._servicers.get(service)
        handler = getattr(servicer, name, None)
        if handler is None or not getattr(handler, "forwardable", False):
            raise InvalidArgument("NOT_FORWARDED", f"method {method[:256]} cannot be forwarded")
        described = method_of(service, name)
        if described.server_streaming != streams:
            raise InvalidArgument("NOT_FORWARDED", f"method {method[:256]} is of another kind")
        try:
            inner = GetMessageClass(described.input_type).FromString(raw)
        except DecodeError:
            raise InvalidArgument("MALFORMED_REQUEST", "request: cannot be read") from None
        return handler, inner, described.GetOptions().Extensions[auth_pb2.rule]


def _credential(request: pb.ForwardCallRequest | pb.ForwardStreamRequest) -> Credential:
    team_id = codec.uuid_or_none(request.tenant_id, field="tenant_id")
    return Credential(request.token_digest, team_id)
