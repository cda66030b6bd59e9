"""What is in force for a version of a workflow or one of its nodes, and where it comes from."""

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
    """A value in force; no level: it is the default."""

    setting: Setting
    value: float | str | None
    level: Level | None


async def get_effective_settings(
    deps: Workflows, caller: Caller, workflow_id: UUID, version: int, workflow_node: str
) -> list[Effective]:
    """Give what holds for a whole run, or for the attempts of one node."""
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
    if place.construct is not None:  # the engine runs it itself, or a workflow's nodes do
        return found
    async with as_caller(deps.pool, caller) as db:
        signatures = await nodes.get_signatures(db, [(place.node_id, place.version)])
    signature = signatures[place.node_id, place.version]
    if signature is not None:  # a node that turned private, or went, has no Python to tell of
        python = signature["python_version"]
        level = Level.DEPLOYMENT if python == deps.python_version else Level.NODE
        found.append(Effective(table.PYTHON_VERSION, python, level))
    return found


def _of_node(place: WorkflowNode) -> Iterator[Effective]:
    for setting, value in place.settings():
        yield _told(setting, value, Level.NODE)
    if place.retry is None:
        # Without a policy nothing is tried again, and the waits of one do not exist.
        yield Effective(table.MAX_RETRIES, 0, None)


def _capped(found: Effective, caps: Mapping[str, int]) -> Effective:
    """Give what the deployment allows, where that is less."""
    cap = caps.get(found.setting.name)
    if cap is None or (isinstance(found.value, int | float) and found.value <= cap):
        return found
    return Effective(found.setting, cap, Level.DEPLOYMENT)


def _told(setting: Setting, value: float | None, level: Level) -> Effective:
    return Effective(setting, value, None if value == setting.default else level)
