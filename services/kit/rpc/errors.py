"""The outermost stage: every failure leaves as one status with details, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as details_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status

from services.kit import errors, pg
from services.kit.errors import QflowError
from services.kit.rpc.call import Call, Handle

log = structlog.get_logger()

DOMAIN: Final = "qflow"


class _InternalError(QflowError):
    """An unexpected exception, of which only an id leaves the process."""


_CODES: Final[Mapping[type[QflowError], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.QuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    _InternalError: grpc.StatusCode.INTERNAL,
}
_KINDS: Final = {code: kind for kind, code in _CODES.items() if kind is not _InternalError}
# Codes with which another service may answer without a fault of either side.
_ELSEWHERE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
# Trailers share the 16 KiB of HTTP/2 headers, encoded in base64: long lists are truncated.
_DETAILS_BYTES_MAX: Final = 6 * 1024
_MESSAGE_CHARS_MAX: Final = 1024
_CHAR_BYTES_MAX: Final = 4
_VIOLATIONS_MAX: Final = 100
# How long to go on reading a refused upload, and how long to wait for each next message.
_HEARD_OUT_MAX_S: Final = 0.25
_SILENT_S: Final = 0.05


def stage(inner: Handle) -> Handle:
    """Turn exceptions into statuses; an unexpected one is logged in full and sent as an id."""

    async def handle(call: Call, request: Any) -> Any:
        try:
            return await inner(call, request)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001  # the outermost handler
            failure = error
        if call.method.uploads:
            await _hear_out(request)
        return await answer(failure, call)

    return handle


async def _hear_out(upload: AsyncIterator[Any]) -> None:
    """Drain a refused upload briefly, as long as messages keep coming.

    Some clients whose write fails as the call ends report that instead of the status.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_HEARD_OUT_MAX_S):
            while True:
                async with asyncio.timeout(_SILENT_S):
                    if await anext(upload, None) is None:
                        return


async def answer(error: Exception, call: Call) -> Any:
    """Abort the call with the status of the error; never returns."""
    status = to_status(known(error) or _unforeseen(error, call))
    await call.context.abort_with_status(rpc_status.to_status(status))


def known(error: Exception) -> QflowError | None:
    """Return the error as a caller may see it; None for an unexpected one."""
    if isinstance(error, QflowError):
        return error
    if isinstance(error, grpc.aio.AioRpcError) and error.code() in _ELSEWHERE:
        log.warning("service_not_reached", code=error.code().name, text=error.details())
        return errors.Unavailable(
            "SERVICE_UNAVAILABLE",
            "a service that this call needs did not respond",
            retry_after_s=1.0,
        )
    translated = pg.translate(error)
    if translated is not None:
        log.warning(
            "database_failed", fault=type(error).__name__, text=str(error), **pg.facts_of(error)
        )
    return translated


def relayed(error: grpc.aio.AioRpcError) -> QflowError | None:
    """Turn the status of another process of the suite into an error of this one.

    None if no service of the suite answered: the connection failed, or there are no details.
    """
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # any call that has trailers
    kind = _KINDS.get(error.code())
    if status is None or kind is None:
        return None
    info, retry, resource = (
        details_pb2.ErrorInfo(),
        details_pb2.RetryInfo(),
        details_pb2.ResourceInfo(),
    )
    bad = details_pb2.BadRequest()
    said = {
        type(each)
        for detail in status.details
        for each in (info, retry, resource, bad)
        if detail.Unpack(each)
    }
    if details_pb2.ErrorInfo not in said or info.domain != DOMAIN:
        return None
    answer = kind(
        info.reason,
        status.message,
        fields=[
            errors.FieldViolation(each.field, each.description, each.reason)
            for each in bad.field_violations
        ],
        retry_after_s=retry.retry_delay.ToMilliseconds() / 1000
        if details_pb2.RetryInfo in said
        else None,
        resource=(resource.resource_type, resource.resource_name)
        if details_pb2.ResourceInfo in said
        else None,
    )
    answer.facts = dict(info.metadata)
    return answer


def code_of(error: BaseException) -> grpc.StatusCode:
    """Return the status code that an exception will be sent as."""
    if isinstance(error, asyncio.CancelledError):
        return grpc.StatusCode.CANCELLED
    if isinstance(error, grpc.aio.AioRpcError) and error.code() in _ELSEWHERE:
        return grpc.StatusCode.UNAVAILABLE
    found = error if isinstance(error, QflowError) else pg.translate(error)
    return grpc.StatusCode.INTERNAL if found is None else _CODES[type(found)]


def to_status(error: QflowError, *, bytes_max: int = _DETAILS_BYTES_MAX) -> status_pb2.Status:
    """Encode an error: its code, its text, and as many machine-readable details as fit."""
    chars_max = min(_MESSAGE_CHARS_MAX, bytes_max // _CHAR_BYTES_MAX)
    status = status_pb2.Status(code=_CODES[type(error)].value[0], message=error.message[:chars_max])
    for detail in _details(error, bytes_max):
        packed = AnyMessage()
        packed.Pack(detail)
        if status.ByteSize() + packed.ByteSize() > bytes_max:
            break
        status.details.append(packed)
    return status


def _details(error: QflowError, bytes_max: int) -> Iterator[Message]:
    yield details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.facts)
    if error.retry_after_s is not None:
        retry = details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_s * 1000))
        yield retry
    if error.resource is not None:
        kind, name = error.resource
        yield details_pb2.ResourceInfo(
            resource_type=kind, resource_name=name, description=error.message[:_MESSAGE_CHARS_MAX]
        )
    if isinstance(error, errors.FailedPrecondition):
        subject = "/".join(error.resource) if error.resource else ""
        violation = details_pb2.PreconditionFailure.Violation(
            type=error.reason, subject=subject, description=error.message[:_MESSAGE_CHARS_MAX]
        )
        yield details_pb2.PreconditionFailure(violations=[violation])
    if isinstance(error, errors.QuotaExceeded):
        quota = details_pb2.QuotaFailure.Violation(
            subject=error.facts.get("subject", ""),
            description=error.message[:_MESSAGE_CHARS_MAX],
        )
        yield details_pb2.QuotaFailure(violations=[quota])
    if error.fields:
        yield _bad_request(error, bytes_max)


def _bad_request(error: QflowError, bytes_max: int) -> details_pb2.BadRequest:
    """List the violations, as many as fit into the trailers."""
    bad = details_pb2.BadRequest()
    room = bytes_max - bytes_max // 3  # the rest is for the other details
    for fault in error.fields[:_VIOLATIONS_MAX]:
        violation = details_pb2.BadRequest.FieldViolation(
            field=fault.field[:256], description=fault.description[:512], reason=fault.reason
        )
        room -= violation.ByteSize() + 4
        if room < 0 and bad.field_violations:
            break
        bad.field_violations.append(violation)
    return bad


def _unforeseen(error: Exception, call: Call) -> QflowError:
    log.error("call_crashed", method=call.method.name, request_id=call.id, exc_info=error)
    return _InternalError("INTERNAL", f"internal error {call.id}", request_id=call.id)
