"""The one answer to whoever names a version, or an alias, that is not there."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from services.kit.errors import FieldViolation, NotFound, no_such

_REASON: Final = "VERSION_NOT_FOUND"
_NO_ALIAS: Final = "ALIAS_NOT_FOUND"


def no_version(field: str, fault: str, *, of: tuple[str, UUID | None]) -> NotFound:
    """Make the error for a field that names a version which a node or workflow lacks."""
    kind, subject_id = of
    return NotFound(
        _REASON,
        f"{field}: {fault}",
        fields=[FieldViolation(field, fault, _REASON)],
        resource=None if subject_id is None else (kind, str(subject_id)),
    )


def no_alias(alias: str, *, workflow_id: UUID) -> NotFound:
    """Make the error for an alias that a workflow lacks."""
    fault = "the workflow has no such alias; ListWorkflowAliases shows those it has"
    return no_such(
        "workflow_alias", alias, _NO_ALIAS, fault, resource=("workflow", str(workflow_id))
    )
