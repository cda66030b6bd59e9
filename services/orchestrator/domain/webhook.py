"""How events are signed and tried again, as the Standard Webhooks convention has it."""

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

# Between the tries of one delivery: together about a day.
PAUSES_S: Final = (5, 30, 120, 600, 1_800, 7_200, 21_600, 54_000)
ATTEMPTS_MAX: Final = len(PAUSES_S) + 1
# How long the secret before the last still signs.
OVERLAP: Final = timedelta(days=1)
# Those whose `Retry-After` is about the next try (RFC 9110, 10.2.3; RFC 6585, 4).
_BUSY: Final = frozenset({429, 503})
_ASKED_MAX: Final = timedelta(hours=1)
_SECONDS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


def fingerprint(key: bytes) -> str:
    """Name a key, without anything that helps to guess it."""
    return hashlib.sha256(b"qflow webhook key " + key).hexdigest()[:16]


def secret_of(key: bytes, subscription_id: UUID, generation: int) -> bytes:
    """Derive the secret of a subscription."""
    said = b"qflow webhook " + subscription_id.bytes + generation.to_bytes(4)
    return hmac.digest(key, said, "sha256")


def shown(secret: bytes) -> str:
    """Give a secret as receivers take it."""
    return f"whsec_{base64.b64encode(secret).decode()}"


def generations(generation: int, rotated_at: datetime | None, now: datetime) -> Sequence[int]:
    """Say which secrets sign now, the newest first."""
    if generation > 1 and rotated_at is not None and now < rotated_at + OVERLAP:
        return (generation, generation - 1)
    return (generation,)


def headers(
    body: str, *, event_id: UUID, timestamp: int, secrets: Sequence[bytes]
) -> dict[str, str]:
    """Give the headers that say which event it is, when it was sent, and by whom."""
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
    """Say how long to wait after so many tries that failed; None when that was the last.

    What a receiver asked for makes a pause longer, never shorter, up to an hour.
    """
    if attempts >= ATTEMPTS_MAX:
        return None
    own = timedelta(seconds=PAUSES_S[max(attempts, 1) - 1])
    return max(own, min(asked, _ASKED_MAX))


def asked_pause(status: int, retry_after: str, *, now: datetime) -> timedelta:
    """Read what `Retry-After` asks for: seconds, or a date; what is neither asks for nothing."""
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
