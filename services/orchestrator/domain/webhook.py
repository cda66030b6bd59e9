"""Signatures and retries of webhooks, by the Standard Webhooks convention."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final
from uuid import UUID

# Between the attempts of a delivery: about a day in total.
PAUSES_S: Final = (5, 30, 120, 600, 1_800, 7_200, 21_600, 54_000)
ATTEMPTS_MAX: Final = len(PAUSES_S) + 1
# How long the previous secret still signs.
OVERLAP: Final = timedelta(days=1)
# Statuses whose `Retry-After` is honoured (RFC 9110, 10.2.3; RFC 6585, 4).
_BUSY: Final = frozenset({429, 503})
_ASKED_MAX: Final = timedelta(hours=1)
_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


def fingerprint(key: bytes) -> str:
    """Return an identifier of a key that does not reveal it."""
    return hashlib.sha256(b"qflow webhook key " + key).hexdigest()[:16]


def secret_of(key: bytes, subscription_id: UUID, generation: int) -> bytes:
    """Derive the secret of a subscription."""
    said = b"qflow webhook " + subscription_id.bytes + generation.to_bytes(4)
    return hmac.digest(key, said, "sha256")


def shown(secret: bytes) -> str:
    """Return a secret in the form for receivers."""
    return f"whsec_{base64.b64encode(secret).decode()}"


def generations(generation: int, rotated_at: datetime | None, now: datetime) -> Sequence[int]:
    """Return the generations of the secrets that sign now, newest first."""
    if generation > 1 and rotated_at is not None and now < rotated_at + OVERLAP:
        return (generation, generation - 1)
    return (generation,)


def headers(
    body: str, *, event_id: UUID, timestamp: int, secrets: Sequence[bytes]
) -> dict[str, str]:
    """Return the headers: event id, timestamp, signatures."""
    signed = f"{event_id}.{timestamp}.{body}".encode()
    signatures = [
        f"v1,{base64.b64encode(hmac.digest(each, signed, 'sha256')).decode()}" for each in secrets
    ]
    return {
        "webhook-id": str(event_id),
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def pause_after(attempts: int, asked: timedelta = timedelta()) -> timedelta | None:
    """Return the wait after so many failed attempts; None after the last.

    A `Retry-After` of the receiver can make it longer, up to an hour, never shorter.
    """
    if attempts >= ATTEMPTS_MAX:
        return None
    own = timedelta(seconds=PAUSES_S[max(attempts, 1) - 1])
    return max(own, min(asked, _ASKED_MAX))


def asked_pause(status: int, retry_after: str, *, now: datetime) -> timedelta:
    """Decode `Retry-After`: seconds or a date; zero if it is neither."""
    said = retry_after.strip()
    if status not in _BUSY or not said:
        return timedelta()
    if _SECONDS.fullmatch(said):
        return timedelta(seconds=int(said))
    try:
        until = parsedate_to_datetime(said)
        return (until if until.tzinfo else until.replace(tzinfo=UTC)) - now
    except (ValueError, OverflowError):
        return timedelta()
