"""Checks of update requests: the field mask, and the etag they are based on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from services.kit.errors import Conflict, FieldViolation, InvalidArgument


def check_mask(mask: Sequence[str], known: Sequence[str]) -> None:
    """Raise unless the mask names at least one field, and only known ones."""
    if mask and all(name in known for name in mask):
        return
    description = f"must name some of {', '.join(known)}"
    raise InvalidArgument(
        "UPDATE_MASK_INVALID",
        f"update_mask {description}",
        fields=[FieldViolation("update_mask", description, "UPDATE_MASK_INVALID")],
    )


def etag_of(revision: int, moment: datetime) -> str:
    """Return an etag: differs for every change, and for a thing that was deleted and recreated."""
    return f"{revision}-{moment.timestamp() * 1_000_000:.0f}"


def check_etag(kind: str, current: str, etag: str) -> None:
    """Raise if it changed since the etag was read; an empty etag is not checked."""
    if etag and etag != current:
        raise stale(kind, current)


def stale(kind: str, current: str) -> Conflict:
    """Return the error for an outdated etag, with the current one."""
    return Conflict(
        "ETAG_MISMATCH",
        f"the {kind} changed since it was read; read it again and repeat the change",
        etag=current,
    )
