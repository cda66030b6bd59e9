"""The runner's resolver: turns requirements into exact distributions with hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from qflow.runner.v1 import environment_service_pb2 as pb
from qflow.runner.v1 import environment_service_pb2_grpc as pb_grpc

# Reasons that a retry cannot fix; all others may be temporary.
_FINAL: Final = frozenset(
    {"REQUIREMENTS_UNSATISFIABLE", "NO_BINARY", "PACKAGE_REFUSED", "INVALID_REQUIREMENT"}
)
_MESSAGE_CHARS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock file: one exact version with hashes per line, and its digest."""

    text: str
    digest: str


class LockFailedError(Exception):
    """Resolving failed: finally if `final`, otherwise it can be retried later."""

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.message = message
        self.final = final


class Environments(Protocol):
    """A resolver of requirements."""

    async def resolve(
        self,
        requirements: Sequence[str],
        *,
        python_version: str,
        tenant_id: UUID,
        timeout_s: float,
    ) -> Lock:
        """Resolve requirements to a lock; raises LockFailedError."""
        ...


class RunnerEnvironments:
    """Resolves through the runner, over gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = pb_grpc.EnvironmentServiceStub(channel)

    async def resolve(
        self,
        requirements: Sequence[str],
        *,
        python_version: str,
        tenant_id: UUID,
        timeout_s: float,
    ) -> Lock:
        """See `Environments`."""
        request = pb.ResolveEnvironmentRequest(
            requirements=requirements, python_version=python_version, tenant_id=str(tenant_id)
        )
        try:
            answer = await self._stub.ResolveEnvironment(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None
        return Lock(answer.lock, answer.lock_digest)


def _failed(error: grpc.aio.AioRpcError) -> LockFailedError:
    final = error.code() == grpc.StatusCode.INVALID_ARGUMENT and _reason(error) in _FINAL
    if final or error.code() == grpc.StatusCode.FAILED_PRECONDITION:
        return LockFailedError((error.details() or "")[:_MESSAGE_CHARS_MAX], final=final)
    return LockFailedError("the runner or the package index does not respond", final=False)


def _reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # typed for sync calls
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            return str(info.reason)
    return ""
