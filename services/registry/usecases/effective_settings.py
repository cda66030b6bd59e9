"""The settings in force for a workflow version or one of its nodes, and their origin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import no_such
from services.kit.pg import as_caller
from services.registry.domain import setting_table as table
from services.registry.domain.definition import WorkflowNode
from services.registry.domain.setting_table import Level, Setting
from services.registry.storage import nodes
from services.registry.usecases.workflows import Workflows, get_version


@dataclass(frozen=True, slots=True)
class Effective:
    """A value in force; a level of None means the default."""

    setting: Setting
    value: float | str | None
    level: Level | None


async def get_effective_settings(
    deps: Workflows, caller: Caller, workflow_id: UUID, version: int, workflow_node: str
) -> list[Effective]:
    """Return the settings of a whole run, or of one node's attempts if a node is given."""
    definition = (await get_version(deps.pool, caller, workflow_id, version)).definition
    if not workflow_node:
        return [_told(setting, value, Level.WORKFLOW) for setting, value in definition.settings()]
    place = next((each for each in definition.nodes if each.id == workflow_node), None)
    if place is None:
        fault = "the workflow has no such node at this version"
        raise no_such(
            "workflow_node",
            workflow_node,
            "WORKFLOW_NODE_NOT_FOUND",
            fault,
            resource=("workflow", str(workflow_id)),
        )
    found = [_capped(each, deps.caps) for each in _of_node(place)]
    if place.construct is not None:  # run by the engine itself, or as a workflow with its own nodes
        return found
    async with as_caller(deps.pool, caller) as db:
        signatures = await nodes.get_signatures(db, [(place.node_id, place.version)])
    signature = signatures[place.node_id, place.version]
    if signature is not None:  # None for a node that became private or was deleted
        python = signature["python_version"]
        level = Level.DEPLOYMENT if python == deps.python_version else Level.NODE
        found.append(Effective(table.PYTHON_VERSION, python, level))
    return found


def _of_node(place: WorkflowNode) -> Iterator[Effective]:
    for setting, value in place.settings():
        yield _told(setting, value, Level.NODE)
    if place.retry is None:
        # Without a retry policy there are no retries, so its delays do not apply.
        yield Effective(table.MAX_RETRIES, 0, None)


def _capped(found: Effective, caps: Mapping[str, int]) -> Effective:
    """Apply the deployment's cap, if it is lower."""
    cap = caps.get(found.setting.name)
    if cap is None or (isinstance(found.value, int | float) and found.value <= cap):
        return found
    return Effective(found.setting, cap, Level.DEPLOYMENT)


def _told(setting: Setting, value: float | None, level: Level) -> Effective:
    return Effective(setting, value, None if value == setting.default else level)
