"""Pages of lists: size limits, and tokens bound to their caller and query."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import orjson

from services.kit.caller import Caller
from services.kit.errors import FieldViolation, InvalidArgument

PageKey = str | int | float | bool | UUID | datetime | None

PAGE_SIZE_DEFAULT: Final = 50
PAGE_SIZE_MAX: Final = 1000
_TOKEN_CHARS_MAX: Final = 4096
_MAC_BYTES: Final = 16
# How much to read at once: bytes of rows that may be large, and a number of small rows.
_SLICE_BYTES: Final = 1024 * 1024
_SLICE_ROWS: Final = 250


@dataclass(frozen=True, slots=True)
class Found:
    """A row found but not read yet: its id, its sort key and its approximate size."""

    id: UUID
    key: str | datetime
    size_bytes: int


def in_slices(found: Sequence[Found]) -> Iterator[Sequence[Found]]:
    """Split rows into slices to read at once, of about 1 MiB or at least one row."""
    begin, room = 0, _SLICE_BYTES
    for at, each in enumerate(found):
        if at > begin and (each.size_bytes > room or at - begin == _SLICE_ROWS):
            yield found[begin:at]
            begin, room = at, _SLICE_BYTES
        room -= each.size_bytes
    if begin < len(found):
        yield found[begin:]


class _Secret:
    """The signing key of this process: random until `configure` sets one shared by replicas."""

    key = os.urandom(32)


def configure(secret: str) -> None:
    """Sign with a secret shared by all replicas of a service, so that tokens survive restarts."""
    _Secret.key = hashlib.sha256(b"qflow page tokens\0" + secret.encode()).digest()


def page_size(requested: int, default: int = PAGE_SIZE_DEFAULT, cap: int = PAGE_SIZE_MAX) -> int:
    """Return the page size to use: 0 is the default, too much is capped, below 0 is refused."""
    if requested < 0:
        raise _invalid("page_size", "must not be negative")
    return min(requested or default, cap)


def filter_digest(*parts: object) -> str:
    """Return a digest of what a list was asked for besides the page: filter, order, parent."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = str(part).encode()
        digest.update(len(encoded).to_bytes(8) + encoded)
    return digest.hexdigest()[:32]


def encode_token(
    kind: str, filter_digest: str, caller: Caller, key_values: Sequence[PageKey]
) -> str:
    """Return a token of the page after the row with these key values; `kind` names the RPC."""
    payload = orjson.dumps([_tagged(value) for value in key_values])
    mac = _mac(payload, kind=kind, filter_digest=filter_digest, caller=caller)
    return _text(mac + payload)


def decode_token(token: str, kind: str, filter_digest: str, caller: Caller) -> list[PageKey] | None:
    """Return the key values of the last row seen; None for the first page (an empty token).

    A token that was forged, cut, or made for another RPC, filter or caller is `InvalidArgument`.
    """
    if not token:
        return None
    try:
        if len(token) > _TOKEN_CHARS_MAX:
            raise ValueError(len(token))
        raw = base64.b64decode(
            token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True
        )
        if _text(raw) != token:
            raise ValueError("not as it was issued")
        mac, payload = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        good = _mac(payload, kind=kind, filter_digest=filter_digest, caller=caller)
        if not hmac.compare_digest(mac, good):
            raise ValueError("wrong signature")
        return [_untagged(value) for value in orjson.loads(payload)]
    except (ValueError, binascii.Error, UnicodeEncodeError):
        raise token_refused() from None


def token_refused() -> InvalidArgument:
    """Return the error for a token that does not belong to this list."""
    return _invalid(
        "page_token", "is not a token of this list with this filter; start again without a token"
    )


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _mac(payload: bytes, *, kind: str, filter_digest: str, caller: Caller) -> bytes:
    whose = caller.tenant_id.bytes + caller.user_id.bytes
    message = b"\0".join((kind.encode(), filter_digest.encode(), whose, payload))
    return hmac.digest(_Secret.key, message, "sha256")[:_MAC_BYTES]


def _tagged(value: PageKey) -> object:
    match value:
        case UUID():
            return {"u": value.hex}
        case datetime():
            return {"t": value.isoformat()}
        case _:
            return value


def _untagged(value: object) -> PageKey:
    match value:
        case {"u": str(text)}:
            return UUID(hex=text)
        case {"t": str(text)}:
            return datetime.fromisoformat(text)
        case str() | int() | float() | bool() | None:
            return value
        case _:
            raise ValueError("unknown kind of key")


def _invalid(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        "INVALID_PAGE",
        f"{field} {description}",
        fields=[FieldViolation(field, description)],
    )
