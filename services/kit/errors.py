"""Errors that callers see: one small class per kind, with a reason and facts."""

# The kinds are named like the status codes; a suffix "Error" would add nothing.
# ruff: noqa: N818

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,61}[A-Z0-9]")
_FACT_CHARS_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One fault of the request, with the path of its field."""

    field: str
    description: str
    reason: str = ""


class QflowError(Exception):
    """An error that the caller may see; raise one of the kinds below, never this class itself.

    `reason` is UPPER_SNAKE and stable: clients branch on it. `message` is for people: which field,
    what was wrong, what to do. Facts are sent to the caller as text, so they must not hold secrets.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        fields: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
        resource: tuple[str, str] | None = None,
        **facts: object,
    ) -> None:
        assert _REASON.fullmatch(reason), reason
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.fields = tuple(fields)
        self.retry_after_s = retry_after_s
        self.resource = resource
        self.facts = {name: str(fact)[:_FACT_CHARS_MAX] for name, fact in facts.items()}


class InvalidArgument(QflowError):
    """The request is wrong, whatever the state of the system."""


def invalid(field: str, reason: str, description: str) -> InvalidArgument:
    """Return the error for one invalid field; `description` says what is wrong, after its name."""
    return InvalidArgument(
        reason, f"{field}: {description}", fields=[FieldViolation(field, description, reason)]
    )


class OutOfRange(QflowError):
    """A position or range outside of what exists."""


class NotFound(QflowError):
    """It does not exist, or the caller may not know that it does."""


def no_such(
    field: str,
    value: object,
    reason: str,
    description: str,
    *,
    resource: tuple[str, str] | None = None,
) -> NotFound:
    """Return the error for a field that names something that does not exist."""
    return NotFound(
        reason,
        f"{field} {value}: {description}",
        fields=[FieldViolation(field, description, reason)],
        resource=resource,
    )


def no_version(
    kind: str, thing_id: object, version: int, *, newest: int | None, field: str = "version"
) -> NotFound:
    """Return the error for a field with a version that a node or workflow does not have.

    Without `newest` it may exist, but the caller may not read it.
    """
    reason = "VERSION_NOT_FOUND"
    fault = f"the {kind} has versions 1 to {newest}, not {version}"
    if newest is None:
        fault = f"the {kind} has no version {version} that you may read"
    return NotFound(
        reason,
        f"{field}: {fault}",
        fields=[FieldViolation(field, fault, reason)],
        resource=(kind, str(thing_id)),
    )


class AlreadyExists(QflowError):
    """It exists already, or the request id was used for another request."""


class FailedPrecondition(QflowError):
    """The current state forbids it; repeating the call alone will not help."""


class Conflict(QflowError):
    """It was changed concurrently; read again and repeat (ABORTED)."""


class PermissionDenied(QflowError):
    """The caller is known, and may not do this."""


class Unauthenticated(QflowError):
    """The caller could not be authenticated."""


class ResourceExhausted(QflowError):
    """A limit or a quota is reached."""


class QuotaExceeded(ResourceExhausted):
    """A quota is used up; the facts `subject` and `quota` say whose and which."""


class Unavailable(QflowError):
    """It does not work at the moment; the same call may succeed soon."""


class DeadlineExceeded(QflowError):
    """The call took longer than its deadline."""


class DataLoss(QflowError):
    """Stored data is damaged."""


class Unimplemented(QflowError):
    """This deployment does not offer it."""
