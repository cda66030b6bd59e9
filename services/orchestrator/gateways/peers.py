"""Clients of other orchestrators, to forward calls on behalf of a user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID

import grpc
from qflow.orchestrator.v1 import peer_service_pb2 as pb
from qflow.orchestrator.v1.execution_service_pb2 import CancelExecutionRequest
from qflow.orchestrator.v1.peer_service_pb2_grpc import PeerServiceStub

from services.kit.caller import Caller
from services.kit.errors import QflowError
from services.kit.rpc.channel import open_channel
from services.kit.rpc.codec import duration_ms
from services.kit.rpc.errors import relayed
from services.kit.rpc.tls import Trust

NOT_OWNER: Final = "NOT_OWNER"
_LOOP_S: Final = 2.0  # deadline of calls made by a loop
_ANSWER_S: Final = 2.0  # on top of the timeout of a long poll
_CANCEL: Final = "/qflow.orchestrator.v1.ExecutionService/CancelExecution"


class PeerGone(Exception):  # noqa: N818  # an event, not an error
    """The peer does not answer, or does not own the run any more: look the owner up again."""

    def __init__(self, message: str, *, undone: bool = False) -> None:
        """`undone` says that the peer has certainly not executed the call."""
        super().__init__(message)
        self.undone = undone


class Peers:
    """One channel per peer, opened on first use."""

    def __init__(self, token: str, *, trust: Trust | None = None) -> None:
        self._token = token
        self._trust = trust
        self._stubs: dict[str, tuple[grpc.aio.Channel, Any]] = {}

    async def call(
        self,
        address: str,
        method: str,
        request: bytes,
        caller: Caller,
    ) -> bytes:
        """Forward a call; returns its serialized response. Raises the peer's error, or PeerGone."""
        asked = pb.ForwardCallRequest(
            method=method,
            request=request,
            token_digest=caller.token_digest,
            tenant_id=str(caller.team_id or ""),
        )
        try:
            answer = await self._stub(address).ForwardCall(asked)
        except grpc.aio.AioRpcError as error:
            raise _fault(error) from error
        return bytes(answer.response)

    async def cancel(self, address: str, execution_id: UUID, caller: Caller) -> None:
        """Request cancellation of a run that the peer owns."""
        request = CancelExecutionRequest(execution_id=str(execution_id))
        await self.call(address, _CANCEL, request.SerializeToString(), caller)

    async def cancel_overlapping(self, address: str, execution_id: UUID, schedule_id: UUID) -> None:
        """Request cancellation of a schedule's run, because its next run is due."""
        asked = pb.CancelOverlappingRequest(
            schedule_id=str(schedule_id), execution_id=str(execution_id)
        )
        try:
            await self._stub(address).CancelOverlapping(asked, timeout=_LOOP_S)
        except grpc.aio.AioRpcError as error:
            raise _fault(error) from error

    async def await_end(self, address: str, execution_id: UUID, timeout_s: float) -> None:
        """Wait until a run of the peer has ended or moved, at most `timeout_s`."""
        asked = pb.AwaitEndRequest(
            execution_id=str(execution_id), timeout=duration_ms(timeout_s * 1000)
        )
        try:
            await self._stub(address).AwaitEnd(asked, timeout=timeout_s + _ANSWER_S)
        except grpc.aio.AioRpcError as error:
            raise _fault(error) from error

    async def stream(
        self, address: str, method: str, request: bytes, caller: Caller
    ) -> AsyncIterator[bytes]:
        """Forward a streaming call; yields serialized responses. Raises as `call` does."""
        asked = pb.ForwardStreamRequest(
            method=method,
            request=request,
            token_digest=caller.token_digest,
            tenant_id=str(caller.team_id or ""),
        )
        call = self._stub(address).ForwardStream(asked)
        try:
            async for answer in call:
                yield bytes(answer.response)
        except grpc.aio.AioRpcError as error:
            raise _fault(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close all channels."""
        stubs, self._stubs = self._stubs, {}
        for channel, _ in stubs.values():
            await channel.close()

    def _stub(self, address: str) -> Any:
        if address not in self._stubs:
            channel = open_channel(address, self._token, trust=self._trust, peer="orchestrator")
            self._stubs[address] = (channel, PeerServiceStub(channel))
        return self._stubs[address][1]


def _fault(error: grpc.aio.AioRpcError) -> QflowError | PeerGone:
    """Return the owner's own error, or `PeerGone` if the call did not reach the owner."""
    answered = relayed(error)
    if answered is None or answered.reason in {NOT_OWNER, "DRAINING"}:
        undone = answered is not None and answered.reason == NOT_OWNER
        return PeerGone(f"{error.code().name}: {error.details()}", undone=undone)
    return answered
