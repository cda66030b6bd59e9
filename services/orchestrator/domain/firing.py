"""What a call of a trigger starts: its inputs, its one request id, and whether it is of now."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

from qflow.types import ValueTextError, parse_strict

from services.kit.errors import FieldViolation, InvalidArgument

# A call that was overheard may be sent again for so long; it then gives the same run.
WINDOW: Final = timedelta(minutes=5)


def check_time(sent_at: datetime, now: datetime) -> None:
    """Refuse what was sent too long ago, or is from a clock that is wrong."""
    if abs(now - sent_at) > WINDOW:
        fault = f"must be within {WINDOW.seconds // 60} minutes of the server's time"
        raise _invalid("send_time", "TRIGGER_STALE", fault)


def check_object(text: str, *, field: str) -> None:
    """Refuse what is no JSON object."""
    try:
        value = parse_strict(text or "{}")
    except ValueTextError as error:
        raise _invalid(field, "INPUT_INVALID", str(error)) from None
    if not isinstance(value, dict):
        raise _invalid(field, "INPUT_INVALID", "must be a JSON object")


def check_value(text: str, *, field: str) -> None:
    """Refuse what is no JSON."""
    try:
        parse_strict(text)
    except ValueTextError as error:
        raise _invalid(field, "INPUT_INVALID", str(error)) from None


def request_id(trigger_id: UUID, *, idempotency_key: str, sent_at: datetime, payload: str) -> UUID:
    """Give what makes a repeated call the same start."""
    if idempotency_key:
        return uuid5(trigger_id, f"key {idempotency_key}")
    digest = hashlib.sha256(payload.encode()).hexdigest()
    return uuid5(trigger_id, f"payload {sent_at.isoformat()} {digest}")


def _invalid(field: str, reason: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        reason, f"{field}: {description}", fields=[FieldViolation(field, description, reason)]
    )
