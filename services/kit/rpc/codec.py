"""Conversion between protobuf and Python types that the messages of all services use."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.kit.errors import FieldViolation, InvalidArgument
from services.kit.ids import canonical_uuid

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def uuid_from(text: str, *, field: str) -> UUID:
    """Parse an id in canonical form, in either case; braces and `urn:` are refused."""
    found = canonical_uuid(text)
    if found is None:
        description = "must be a UUID like 0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a"
        raise invalid(field, description if text else f"is required: it {description}")
    return found


def uuid_or_none(text: str, *, field: str) -> UUID | None:
    """Parse an optional id; None if it is empty."""
    return uuid_from(text, field=field) if text else None


def timestamp(moment: datetime | None) -> Timestamp | None:
    """Encode a datetime to the microsecond; None stays unset."""
    if moment is None:
        return None
    encoded = Timestamp()
    put_timestamp(encoded, moment)
    return encoded


def put_timestamp(encoded: Timestamp, moment: datetime) -> None:
    """Encode a datetime into an existing message, which saves copying it there."""
    # Integers throughout: a float of seconds would lose microseconds.
    since = moment - _EPOCH
    encoded.seconds = since.days * 86_400 + since.seconds
    encoded.nanos = since.microseconds * 1000


def timestamps(moments: Iterable[datetime]) -> list[Timestamp]:
    """Encode datetimes to the microsecond."""
    return [encoded for each in moments if (encoded := timestamp(each)) is not None]


def moment(encoded: Timestamp) -> datetime:
    """Decode to the microsecond; OverflowError outside of Python's years 1 to 9999."""
    return _EPOCH + timedelta(seconds=encoded.seconds, microseconds=encoded.nanos // 1000)


def moment_from(encoded: Timestamp, *, field: str, reason: str = "INVALID_FIELD") -> datetime:
    """Decode a timestamp from a request; raises `InvalidArgument` if it is out of range."""
    try:
        return moment(encoded)
    except OverflowError:
        raise invalid(field, "must lie within the years 1 to 9999", reason) from None


def duration_ms(milliseconds: float | None) -> Duration | None:
    """Encode a duration given in milliseconds; None stays unset."""
    if milliseconds is None:
        return None
    encoded = Duration()
    encoded.FromMicroseconds(round(milliseconds * 1000))
    return encoded


def put_duration_us(encoded: Duration, microseconds: int) -> None:
    """Encode a non-negative number of microseconds into an existing message."""
    encoded.seconds, rest = divmod(microseconds, 1_000_000)
    encoded.nanos = rest * 1000


def milliseconds_from(encoded: Duration, *, field: str) -> int:
    """Decode a duration to whole milliseconds; raises `InvalidArgument` if it is negative."""
    if encoded.seconds < 0 or encoded.nanos < 0:
        raise invalid(field, "must not be negative")
    return encoded.seconds * 1000 + encoded.nanos // 1_000_000


def invalid(field: str, description: str, reason: str = "INVALID_FIELD") -> InvalidArgument:
    """Return the error for one invalid field of a request."""
    return InvalidArgument(
        reason, f"{field} {description}", fields=[FieldViolation(field, description, reason)]
    )
