"""The other orchestrators, as one calls another in a user's name."""

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
_LOOP_S: Final = 2.0  # for the answer to a loop, which has other things to do
_ANSWER_S: Final = 2.0  # for another one to say that the time of a wait is up
_CANCEL: Final = "/qflow.orchestrator.v1.ExecutionService/CancelExecution"


class PeerGone(Exception):  # noqa: N818  # what happened, for the caller to look again
    """The other one does not answer, or the run is not its own any more."""

    def __init__(self, message: str, *, undone: bool = False) -> None:
        """`undone` says that it certainly did nothing."""
        super().__init__(message)
        self.undone = undone


class Peers:
    """One channel to each, made when it is needed."""

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
        """Have another one answer a call; raises what it raised there, or PeerGone."""
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
        """Have another one ask a run of its own to stop."""
        request = CancelExecutionRequest(execution_id=str(execution_id))
        await self.call(address, _CANCEL, request.SerializeToString(), caller)

    async def cancel_overlapping(self, address: str, execution_id: UUID, schedule_id: UUID) -> None:
        """Have another one ask a run of a schedule to stop, before the next one begins."""
        asked = pb.CancelOverlappingRequest(
            schedule_id=str(schedule_id), execution_id=str(execution_id)
        )
        try:
            await self._stub(address).CancelOverlapping(asked, timeout=_LOOP_S)
        except grpc.aio.AioRpcError as error:
            raise _fault(error) from error

    async def await_end(self, address: str, execution_id: UUID, timeout_s: float) -> None:
        """Wait until a run of another one is over, or moved, or so long."""
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
        """Have another one answer with a stream; raises what it raised there, or PeerGone."""
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
        """Close every channel."""
        stubs, self._stubs = self._stubs, {}
        for channel, _ in stubs.values():
            await channel.close()

    def _stub(self, address: str) -> Any:
        if address not in self._stubs:
            channel = open_channel(address, self._token, trust=self._trust, peer="orchestrator")
            self._stubs[address] = (channel, PeerServiceStub(channel))
        return self._stubs[address][1]


def _fault(error: grpc.aio.AioRpcError) -> QflowError | PeerGone:
    """Tell what the owner answered from what the way to it did."""
    answered = relayed(error)
    if answered is None or answered.reason in {NOT_OWNER, "DRAINING"}:
        undone = answered is not None and answered.reason == NOT_OWNER
        return PeerGone(f"{error.code().name}: {error.details()}", undone=undone)
    return answered
