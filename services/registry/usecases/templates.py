"""Create workflows from templates: fill in the parameters, then check as for any new workflow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
)
from services.kit.idempotency import Replayed, RequestKey, replay
from services.kit.pg import as_caller
from services.registry.domain import templates
from services.registry.domain.definition import Definition, Finding
from services.registry.storage import templates as stored
from services.registry.usecases.workflows import (
    WorkflowAnswer,
    Workflows,
    create_workflow,
    get_version,
)

# Longer arguments are processed in a thread, to keep the event loop responsive.
_FILL_INLINE_MAX: Final = 4 * 1024
_SHOWN_MAX: Final = 10


async def create_from_template(
    deps: Workflows,
    caller: Caller,
    template_id: UUID,
    version: int,
    arguments_json: str,
    *,
    name: str,
    description: str,
    activate: bool,
    key: RequestKey[WorkflowAnswer] | None,
    validate_only: bool,
    guard: Callable[[WorkflowAnswer], None],
) -> WorkflowAnswer | Replayed:
    """Create a workflow for the caller from a template and its arguments."""
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    async with as_caller(deps.pool, caller) as db:
        if not await stored.is_template(db, template_id):
            raise _no_template(template_id)
    template = (await get_version(deps.pool, caller, template_id, version)).definition
    return await create_workflow(
        deps,
        caller,
        name=name,
        description=description,
        definition=await _filled_in(template, arguments_json, template_id),
        activate=activate,
        key=key,
        validate_only=validate_only,
        guard=guard,
    )


async def _filled_in(template: Definition, arguments_json: str, template_id: UUID) -> Definition:
    if len(arguments_json) > _FILL_INLINE_MAX:
        filled = await asyncio.to_thread(templates.fill_in, template, arguments_json)
    else:
        filled = templates.fill_in(template, arguments_json)
    if not filled.faults:
        return filled.definition
    fields = [FieldViolation(each.place, each.message, each.code) for each in filled.faults]
    if all(each.code == templates.MISSING for each in filled.faults):
        raise FailedPrecondition(
            "PARAMETERS_MISSING",
            f"the template has parameters to fill in: {_summary(filled.faults)}",
            fields=fields,
            resource=("workflow", str(template_id)),
        )
    raise InvalidArgument("ARGUMENTS_INVALID", _summary(filled.faults), fields=fields)


def _summary(faults: tuple[Finding, ...]) -> str:
    shown = "; ".join(f"{each.place} {each.message}" for each in faults[:_SHOWN_MAX])
    more = len(faults) - _SHOWN_MAX
    return f"{shown}; and {more} more" if more > 0 else shown


def _no_template(template_id: UUID) -> NotFound:
    fault = "there is no such template that you may read"
    return NotFound(
        "TEMPLATE_NOT_FOUND",
        f"template_id: {fault}",
        fields=[FieldViolation("template_id", fault, "TEMPLATE_NOT_FOUND")],
        resource=("workflow", str(template_id)),
    )
