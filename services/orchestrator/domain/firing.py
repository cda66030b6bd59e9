"""Rules of trigger calls: their age, payload, filter and request id."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final
from uuid import UUID, uuid5

from qflow.types import ValueTextError, parse_strict

from services.kit.cel import Expression, ExpressionError, compile_expression, compile_new
from services.kit.errors import invalid

# A call is accepted for this long; sent again, even by an attacker, it returns the same run.
WINDOW: Final = timedelta(minutes=5)
PAYLOAD: Final = "payload"  # its name in filters
_FILTERS_MAX: Final = 1_000  # compiled ones that are kept


def check_time(sent_at: datetime, now: datetime) -> None:
    """Refuse a call that is too old, or from a wrong clock."""
    if abs(now - sent_at) > WINDOW:
        fault = f"must be within {WINDOW.seconds // 60} minutes of the server's time"
        raise invalid("send_time", "TRIGGER_STALE", fault)


def check_object(text: str, *, field: str) -> None:
    """Refuse a text that is no JSON object."""
    try:
        value = parse_strict(text or "{}")
    except ValueTextError as error:
        raise invalid(field, "INPUT_INVALID", str(error)) from None
    if not isinstance(value, dict):
        raise invalid(field, "INPUT_INVALID", "must be a JSON object")


def check_value(text: str, *, field: str) -> None:
    """Refuse a text that is no JSON."""
    try:
        parse_strict(text)
    except ValueTextError as error:
        raise invalid(field, "INPUT_INVALID", str(error)) from None


@lru_cache(maxsize=_FILTERS_MAX)
def _compiled(text: str) -> Expression:
    return compile_expression(text, {PAYLOAD})


def check_filter(text: str) -> None:
    """Refuse a filter that is no expression over the payload, or never boolean."""
    if not text:
        return
    try:
        expression = compile_new(text, {PAYLOAD})
    except ExpressionError as error:
        raise invalid("filter", "EXPRESSION_INVALID", str(error)) from None
    if expression.is_never_boolean:
        raise invalid("filter", "EXPRESSION_NOT_BOOLEAN", "gives neither true nor false")


def passes(text: str, payload: str) -> bool:
    """Return whether a filter matches; refuses a payload for which it cannot be evaluated."""
    if not text:
        return True
    try:
        return _compiled(text).holds({PAYLOAD: payload.encode()})
    except ExpressionError as error:
        raise invalid("payload_json", "TRIGGER_FILTER_FAILED", f"the filter: {error}") from None


def request_id(trigger_id: UUID, *, idempotency_key: str, sent_at: datetime, payload: str) -> UUID:
    """Return the request id of the start, equal for repeated calls."""
    if idempotency_key:
        return uuid5(trigger_id, f"key {idempotency_key}")
    digest = hashlib.sha256(payload.encode()).hexdigest()
    return uuid5(trigger_id, f"payload {sent_at.isoformat()} {digest}")


def place_of(field: str, *, payload_input: str, own: Collection[str]) -> str:
    """Return the field of the call for a field of the start; the trigger's own inputs stay."""
    first, _, path = field.partition(".")
    name = path.partition(".")[0].partition("[")[0]
    if first != "input_json" or name in own:
        return field
    if not payload_input:
        return f"payload_json.{path}" if path else "payload_json"
    return f"payload_json{path.removeprefix(name)}" if name == payload_input else field
