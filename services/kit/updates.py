"""What all updates have in common: the mask of fields, and the etag that they are based on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from services.kit.errors import Conflict, FieldViolation, InvalidArgument


def check_mask(mask: Sequence[str], known: Sequence[str]) -> None:
    """Raise unless the mask names some of the known fields, and no other."""
    if mask and all(name in known for name in mask):
        return
    description = f"must name some of {', '.join(known)}"
    raise InvalidArgument(
        "UPDATE_MASK_INVALID",
        f"update_mask {description}",
        fields=[FieldViolation("update_mask", description, "UPDATE_MASK_INVALID")],
    )


def etag_of(revision: int, moment: datetime) -> str:
    """Give what changes with every change, and is not the same for one that is made again."""
    return f"{revision}-{moment.timestamp() * 1_000_000:.0f}"


def check_etag(kind: str, current: str, etag: str) -> None:
    """Raise where it changed since the etag was read; an empty one says nothing."""
    if etag and etag != current:
        raise stale(kind, current)


def stale(kind: str, current: str) -> Conflict:
    """Say that it changed meanwhile, and what its etag is now."""
    return Conflict(
        "ETAG_MISMATCH",
        f"the {kind} changed since it was read; read it again and repeat the change",
        etag=current,
    )
