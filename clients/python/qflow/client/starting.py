"""Requests of starts, single and in bulk."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from qflow.exceptions import AuthoringError
from qflow.orchestrator.v1 import execution_pb2, execution_service_pb2, quota_pb2

# Limits of one call, with some room to spare.
_STARTS_MAX: Final = 1000
_BYTES_MAX: Final = 3 * 1024 * 1024
_FRAME_BYTES: Final = 8
_NONE: Final = type(None)
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "request_id": (str,),
    "business_key": (str,),
    "labels": (Mapping,),
    "priority": (int,),
    "timeout": (timedelta, _NONE),
    "start_time": (datetime, _NONE),
    "budget": (Mapping,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOptions:
    """Options of a start. With `request_id`, a repeated start returns the same run.

    `on_conflict` is the policy while a run with the `business_key` is open, `on_reuse` the one
    after it has ended.

    A run ends once its `budget` is used up, with the outputs it has by then.
    """

    request_id: str = ""
    business_key: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    timeout: timedelta | None = None
    start_time: datetime | None = None
    ignore_cache: bool = False
    on_conflict: Literal["fail", "use_existing", "cancel_existing"] = "fail"
    on_reuse: Literal["allow", "allow_if_failed", "reject"] = "allow"
    budget: Mapping[str, int] = field(default_factory=dict)  # by resource, named as in `BUDGETED`

    def __post_init__(self) -> None:
        """Refuse values of a wrong type early."""
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                raise AuthoringError(f"options({name}=…) takes {kind[0].__name__}, not {value!r}")
        for key, value in self.labels.items():
            if not (isinstance(key, str) and isinstance(value, str)):
                raise AuthoringError(f"the label {key!r} is {value!r}: keys and values are texts")
        for name, words in (("on_conflict", CONFLICT), ("on_reuse", REUSE)):
            if (word := getattr(self, name)) not in words:
                raise AuthoringError(
                    f"options({name}=…) is one of {', '.join(words)}, not {word!r}"
                )
        if self.request_id and not _is_uuid(self.request_id):
            raise AuthoringError(
                f"options(request_id=…) is a UUID, not {self.request_id!r}; one that always stands "
                f"for this text is uuid.uuid5(uuid.NAMESPACE_URL, {self.request_id!r})"
            )


BUDGETED: Final = tuple(quota_pb2.ResourceAmounts.DESCRIPTOR.fields_by_name)
CONFLICT: Final = {
    "fail": execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_FAIL,
    "use_existing": execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_USE_EXISTING,
    "cancel_existing": execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_CANCEL_EXISTING,
}
REUSE: Final = {
    "allow": execution_pb2.BUSINESS_KEY_REUSE_POLICY_ALLOW,
    "allow_if_failed": execution_pb2.BUSINESS_KEY_REUSE_POLICY_ALLOW_IF_FAILED,
    "reject": execution_pb2.BUSINESS_KEY_REUSE_POLICY_REJECT,
}


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def each_options(
    options: StartOptions, count: int, business_keys: Sequence[str]
) -> list[StartOptions]:
    """Return the options of each of many starts, with its business key and request id.

    The ids are derived from the given one, so that a repetition repeats each start.
    """
    if options.business_key:
        raise AuthoringError("a business key is one run's: give `business_keys`, one for each")
    if business_keys and len(business_keys) != count:
        raise AuthoringError(f"{len(business_keys)} business keys for {count} starts")
    of_all = uuid.UUID(options.request_id) if options.request_id else uuid.uuid4()
    return [
        replace(
            options,
            request_id=str(uuid.uuid5(of_all, str(number))),
            business_key=business_keys[number] if business_keys else "",
        )
        for number in range(count)
    ]


def request(
    options: StartOptions, workflow_id: str, version: int, alias: str, text: str
) -> execution_service_pb2.StartExecutionRequest:
    """Return the request of a start."""
    if unknown := sorted(set(options.budget) - set(BUDGETED)):
        there = ", ".join(BUDGETED)
        raise AuthoringError(f"a budget has no {unknown[0]!r} (there: {there})")
    said = execution_service_pb2.StartExecutionRequest(
        workflow_id=workflow_id,
        workflow_version=0 if alias else version,
        workflow_alias=alias,
        input_json=text,
        request_id=options.request_id or str(uuid.uuid4()),
        labels=options.labels,
        priority=options.priority,
        ignore_cache=options.ignore_cache,
        budget=quota_pb2.ResourceAmounts(**options.budget) if options.budget else None,
    )
    if options.business_key:
        said.business_key = options.business_key
        said.business_key_conflict = CONFLICT[options.on_conflict]
        said.business_key_reuse = REUSE[options.on_reuse]
    if options.timeout is not None:
        said.timeout.FromTimedelta(options.timeout)
    if options.start_time is not None:
        said.start_time.FromDatetime(options.start_time)
    return said


def batches(
    starts: Sequence[execution_service_pb2.StartExecutionRequest],
) -> Iterator[execution_service_pb2.BatchStartExecutionsRequest]:
    """Split starts into as few calls as possible, in order."""
    part: list[execution_service_pb2.StartExecutionRequest] = []
    size = 0
    for each in starts:
        more = each.ByteSize() + _FRAME_BYTES
        if part and (len(part) == _STARTS_MAX or size + more > _BYTES_MAX):
            yield execution_service_pb2.BatchStartExecutionsRequest(starts=part)
            part, size = [], 0
        part.append(each)
        size += more
    if part:
        yield execution_service_pb2.BatchStartExecutionsRequest(starts=part)
