"""The error for unknown aliases."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from services.kit.errors import NotFound, no_such

_NO_ALIAS: Final = "ALIAS_NOT_FOUND"


def no_alias(alias: str, *, workflow_id: UUID) -> NotFound:
    """Return the error for an alias that a workflow does not have."""
    fault = "the workflow has no such alias; ListWorkflowAliases shows those it has"
    return no_such(
        "workflow_alias", alias, _NO_ALIAS, fault, resource=("workflow", str(workflow_id))
    )
