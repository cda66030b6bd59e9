"""The one answer to whoever names an alias that is not there."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from services.kit.errors import NotFound, no_such

_NO_ALIAS: Final = "ALIAS_NOT_FOUND"


def no_alias(alias: str, *, workflow_id: UUID) -> NotFound:
    """Make the error for an alias that a workflow lacks."""
    fault = "the workflow has no such alias; ListWorkflowAliases shows those it has"
    return no_such(
        "workflow_alias", alias, _NO_ALIAS, fault, resource=("workflow", str(workflow_id))
    )
