"""Which timestamps and durations are valid, as protobuf's Timestamp and Duration define it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

NAMES: Final = frozenset({Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name})
_MOMENT_S_MIN: Final = -62_135_596_800  # the first second of year 1
_MOMENT_S_MAX: Final = 253_402_300_799  # the last of year 9999
_SPAN_S_MAX: Final = 315_576_000_000  # about ten thousand years
_NANOS_MAX: Final = 999_999_999


class Fault(NamedTuple):
    """What is wrong with a timestamp or a duration."""

    description: str
    reason: str


def fault(encoded: Timestamp | Duration) -> Fault | None:
    """Return what is wrong with it; None if it is valid."""
    if isinstance(encoded, Timestamp):
        said = _of_moment(encoded.seconds, encoded.nanos)
        return Fault(said, "TIME_INVALID") if said else None
    said = _of_span(encoded.seconds, encoded.nanos)
    return Fault(said, "DURATION_INVALID") if said else None


def _of_moment(seconds: int, nanos: int) -> str:
    if not _MOMENT_S_MIN <= seconds <= _MOMENT_S_MAX:
        return "must lie within the years 1 to 9999"
    if not 0 <= nanos <= _NANOS_MAX:
        return f"must have nanos from 0 to {_NANOS_MAX}, it has {nanos}"
    return ""


def _of_span(seconds: int, nanos: int) -> str:
    if abs(seconds) > _SPAN_S_MAX:
        return f"must have at most {_SPAN_S_MAX} seconds, forwards or backwards"
    if abs(nanos) > _NANOS_MAX:
        return f"must have nanos from -{_NANOS_MAX} to {_NANOS_MAX}, it has {nanos}"
    return "must have seconds and nanos of one sign" if seconds * nanos < 0 else ""


def is_right(encoded: Any) -> bool:
    """Return whether it is valid."""
    return fault(encoded) is None
