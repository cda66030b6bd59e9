"""Decodes the requests of starts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit.caller import current_caller
from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.rpc import codec as kit
from services.kit.rpc import deadline
from services.orchestrator.domain.options import (
    NO_WISHES,
    KeyConflict,
    KeyReuse,
    RunOptions,
    Wishes,
)
from services.orchestrator.rpc import codec
from services.orchestrator.rpc.amounts import amounts
from services.orchestrator.usecases.launch import Started
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.start_many import Asked, start_one

_AHEAD_MAX: Final = timedelta(days=366)
WAIT_DEFAULT_S: Final = 30.0
# Reserved of a call's deadline for the response.
_ANSWER_S: Final = 0.25
_CONFLICT: Final[Mapping[int, KeyConflict]] = {
    0: KeyConflict.FAIL,
    execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_FAIL: KeyConflict.FAIL,
    execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_USE_EXISTING: KeyConflict.USE_EXISTING,
    execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_CANCEL_EXISTING: KeyConflict.CANCEL_EXISTING,
}
_REUSE: Final[Mapping[int, KeyReuse]] = {
    0: KeyReuse.ALLOW,
    execution_pb2.BUSINESS_KEY_REUSE_POLICY_ALLOW: KeyReuse.ALLOW,
    execution_pb2.BUSINESS_KEY_REUSE_POLICY_ALLOW_IF_FAILED: KeyReuse.ALLOW_IF_FAILED,
    execution_pb2.BUSINESS_KEY_REUSE_POLICY_REJECT: KeyReuse.REJECT,
}


async def start(starter: Starter, request: pb.StartExecutionRequest) -> Started:
    """Start a run as a request asks."""
    return await start_one(starter, current_caller(), asked_from(request))


def asked_from(request: pb.StartExecutionRequest) -> Asked:
    """Decode a request; with `validate_only` its request id is not recorded."""
    if request.workflow_alias and request.workflow_version:
        raise _refused("workflow_alias", "name a version or an alias, not both", _TWICE)
    request_id = kit.uuid_or_none(request.request_id, field="request_id")
    return Asked(
        kit.uuid_from(request.workflow_id, field="workflow_id"),
        request.workflow_version,
        request.input_json,
        None if request.validate_only else request_id,
        request.workflow_alias,
        _wishes(request),
        request.validate_only,
    )


_TWICE: Final = "VERSION_NAMED_TWICE"


# A start with only these fields has no options, and skips decoding them.
_PLAIN: Final = frozenset(
    {
        pb.StartExecutionRequest.WORKFLOW_ID_FIELD_NUMBER,
        pb.StartExecutionRequest.WORKFLOW_VERSION_FIELD_NUMBER,
        pb.StartExecutionRequest.WORKFLOW_ALIAS_FIELD_NUMBER,
        pb.StartExecutionRequest.INPUT_JSON_FIELD_NUMBER,
        pb.StartExecutionRequest.REQUEST_ID_FIELD_NUMBER,
        pb.StartExecutionRequest.VALIDATE_ONLY_FIELD_NUMBER,
    }
)


def _wishes(request: pb.StartExecutionRequest) -> Wishes:
    if _PLAIN.issuperset([field.number for field, _ in request.ListFields()]):
        return NO_WISHES
    conflict = _CONFLICT[request.business_key_conflict]
    reuse = _REUSE[request.business_key_reuse]
    key = request.business_key if request.HasField("business_key") else None
    if key is None and (request.business_key_conflict or request.business_key_reuse):
        raise _refused("business_key", "a policy is given and no key", "BUSINESS_KEY_MISSING")
    if conflict is KeyConflict.CANCEL_EXISTING and reuse is KeyReuse.REJECT:
        said = "CANCEL_EXISTING would stop a run, and REJECT then refuse its successor"
        raise _refused("business_key_conflict", said, "BUSINESS_KEY_POLICIES_CLASH")
    start_at = moment(request, "start_time")
    return Wishes(
        options=RunOptions(
            business_key=key,
            labels=dict(request.labels),
            priority=request.priority,
            start_at=start_at,
            ignores_cache=request.ignore_cache,
            budget=amounts(request.budget),
        ),
        conflict=conflict,
        reuse=reuse,
        timeout_ms=timeout_ms(request),
    )


def timeout_ms(request: Any) -> int | None:
    """Decode the timeout of a run in milliseconds."""
    if not request.HasField("timeout"):
        return None
    return kit.milliseconds_from(request.timeout, field="timeout")


def moment(request: Any, field: str) -> datetime | None:
    """Decode a start time, at most a year ahead; None if unset or past."""
    if not request.HasField(field):
        return None
    stamp: Timestamp = getattr(request, field)
    try:
        at = stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise _refused(field, "is no moment of the calendar", "INVALID_FIELD") from None
    ahead = at - datetime.now(UTC)
    if ahead > _AHEAD_MAX:
        said = f"is more than {_AHEAD_MAX.days} days ahead"
        raise _refused(field, said, "START_TIME_TOO_FAR")
    return at


def wait_s(request: Any) -> float:
    """Decode how long to wait, in seconds; less, if the call has to end before."""
    wanted = WAIT_DEFAULT_S
    if request.HasField("wait"):
        wanted = kit.milliseconds_from(request.wait, field="wait") / 1000
    left = deadline.remaining()
    return wanted if left is None else max(0.0, min(wanted, left - _ANSWER_S))


def execution(started: Started, *, validate_only: bool) -> execution_pb2.Execution:
    """Encode the run of a start; with `validate_only` a new run has no id."""
    message = codec.execution_to_pb(started.execution, started.plan)
    if validate_only and not started.existing:
        message.id = ""
    return message


def _refused(field: str, said: str, reason: str) -> InvalidArgument:
    fields = [FieldViolation(field, said, reason)]
    return InvalidArgument(reason, f"{field}: {said}", fields=fields)
