"""The variables that a start uses, limited in total size."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from services.kit.errors import FailedPrecondition, FieldViolation
from services.kit.pg import Db
from services.orchestrator.domain.plan import Definition
from services.orchestrator.storage import definitions
from services.orchestrator.storage.definitions import Variable

# The total size per run, as for its inputs.
_CHARS_MAX: Final = 1024 * 1024


async def taken_variables(db: Db, tenant_id: UUID, definition: Definition) -> list[Variable]:
    """Return the variables that a definition uses; raises if one is missing."""
    names = list(definition.settings.get("variables") or ())
    if not names or definition.workflow_id is None:
        return []
    found = await definitions.get_variables(db, tenant_id, definition.workflow_id, names)
    missing = sorted(set(names) - {each.name for each in found})
    if missing:
        fields = [_missing(definition, name) for name in missing]
        raise FailedPrecondition(
            "VARIABLE_MISSING",
            f"the workflow reads variables that do not exist: {', '.join(missing[:10])}; "
            "create them with SetVariable",
            fields=fields,
            resource=("workflow", str(definition.workflow_id)),
        )
    if sum(len(each.text) for each in found) > _CHARS_MAX:
        raise FailedPrecondition(
            "VARIABLES_TOO_LARGE",
            f"the variables of the workflow have more than {_CHARS_MAX} characters in total",
            resource=("workflow", str(definition.workflow_id)),
        )
    return found


def _missing(definition: Definition, name: str) -> FieldViolation:
    """Return the violation of a missing variable, at the first input that uses it."""
    for index, node in enumerate(definition.nodes):
        sources = list((node.get("variables") or {}).values())
        if name in sources:
            place = f"nodes[{index}].variables[{sources.index(name)}]"
            return FieldViolation(place, f"there is no variable {name}", "VARIABLE_MISSING")
    raise AssertionError(name)
