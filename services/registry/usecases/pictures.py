"""Draw workflows, stored ones and submitted definitions."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.pg import as_caller
from services.registry.domain.definition import Definition, Finding
from services.registry.gateways.documents import Picture
from services.registry.usecases import workflows
from services.registry.usecases.exchange import Exchange
from services.registry.usecases.signatures import names_in

_GONE: Final = "not there any more"
_UNNAMED: Final = "Workflow"


async def render_workflow(
    deps: Exchange, caller: Caller, workflow_id: UUID, *, version: int, form: Picture
) -> str:
    """Draw a stored workflow with its stored verdicts."""
    workflow = await workflows.get_workflow(
        deps.workflows.pool, caller, workflow_id, version=version
    )
    return await _drawn(deps, caller, workflow.name, workflow.definition, form)


async def render_definition(
    deps: Exchange, caller: Caller, definition: Definition, *, form: Picture
) -> tuple[str, tuple[Finding, ...]]:
    """Check a definition and draw it, whatever the findings."""
    checked = await workflows.check_workflow(deps.workflows, caller, definition)
    text = await _drawn(deps, caller, _UNNAMED, checked.definition, form)
    return text, checked.findings


async def _drawn(
    deps: Exchange, caller: Caller, title: str, definition: Definition, form: Picture
) -> str:
    async with as_caller(deps.workflows.pool, caller) as db:
        names = await names_in(db, definition)
    called = [names.get((each.node_id, each.version), _GONE) for each in definition.nodes]
    return await deps.documents.draw(title, definition, called, form)
