"""Exceptions of calls to Qflow: one per status code, with the reason and facts.

try:
    await client.nodes.get(node_id)
except qflow.NotFoundError as error:
    print(error.reason, error.facts)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2 as details_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from qflow import unreached
from qflow.exceptions import QflowError


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a refused request, and what is wrong with it."""

    field: str
    description: str


class CallError(QflowError):
    """A call that failed.

    `reason` is a stable identifier in upper snake case, `facts` has its details, `violations` the
    invalid fields; `retry_after_s` is when to retry, if the server knows.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        facts: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        # The message often contains the only violation already.
        told = [each for each in violations if each.description not in message]
        lines = [message, *(f"  {each.field}: {each.description}" for each in told)]
        super().__init__("\n".join(lines))
        self.message = message
        self.reason = reason
        self.facts: Mapping[str, str] = facts or {}
        self.violations = violations
        self.retry_after_s = retry_after_s


class InvalidArgumentError(CallError):
    """The request is invalid."""


class NotFoundError(CallError):
    """It does not exist, or the caller may not read it."""


class AlreadyExistsError(CallError):
    """Something with this name, key or request id exists already."""


class FailedPreconditionError(CallError):
    """Not possible in the present state; the message says what to change first."""


class AbortedError(CallError):
    """It was changed meanwhile: read it again and retry."""


class OutOfRangeError(CallError):
    """Outside the valid range."""


class PermissionDeniedError(CallError):
    """The caller is known but may not do this."""


class UnauthenticatedError(CallError):
    """The token is missing or invalid: sign in again."""


class ResourceExhaustedError(CallError):
    """A limit was reached; `retry_after_s` may say when to retry."""


class UnavailableError(CallError):
    """The service is unavailable."""


class DeadlineExceededError(CallError):
    """No response arrived in time; it is unknown whether the call was executed."""


class CancelledError(CallError):
    """The call was cancelled."""


class DataLossError(CallError):
    """Stored data cannot be read any more."""


class UnimplementedError(CallError):
    """The service does not know this call: it is older than the client."""


class InternalError(CallError):
    """A fault of the service; its log has the details under the id in `facts`."""


_KINDS: Final[Mapping[grpc.StatusCode, type[CallError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.DATA_LOSS: DataLossError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
}


# gRPC's own message for one that is too large.
_TOO_LARGE: Final = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
_BY_NUMBER: Final = {code.value[0]: kind for code, kind in _KINDS.items()}


def from_rpc(
    error: grpc.aio.AioRpcError, *, address: str = "", encrypted: bool = False
) -> CallError:
    """Return the exception for a failed call, with its details.

    The address and the use of TLS are for the message if no service was reached.
    """
    kind = _KINDS.get(error.code(), InternalError)
    message = error.details() or error.code().name
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # any call with trailers
    except ValueError:  # answered by a proxy
        status = None
    told = _made(kind, message, status.details if status is not None else ())
    if kind is UnavailableError and not told.reason and address:
        return kind(unreached.sentence(address, message, encrypted=encrypted))
    if kind is ResourceExhaustedError and (sizes := _TOO_LARGE.search(message)):
        sent, most = (int(each) for each in sizes.groups())
        return kind(
            f"a message of {sent:,} bytes is more than the {most:,} that a call takes: "
            "bring large values as files"
        )
    if kind is UnimplementedError and not told.reason:
        where = f" at {address}" if address else ""
        return kind(f"the Qflow{where} does not know this call: it is older than this client")
    return told


def from_status(status: status_pb2.Status) -> CallError:
    """Return the exception for the status of a bulk item."""
    return _made(_BY_NUMBER.get(status.code, InternalError), status.message, status.details)


def _made(kind: type[CallError], message: str, details: Iterable[AnyMessage]) -> CallError:
    info, bad, retry = (
        details_pb2.ErrorInfo(),
        details_pb2.BadRequest(),
        details_pb2.RetryInfo(),
    )
    for detail in details:
        for each in (info, bad, retry):
            detail.Unpack(each)
    return kind(
        message,
        reason=info.reason,
        facts=dict(info.metadata),
        violations=tuple(
            FieldViolation(each.field, each.description) for each in bad.field_violations
        ),
        retry_after_s=retry.retry_delay.ToTimedelta().total_seconds()
        if retry.HasField("retry_delay")
        else None,
    )
