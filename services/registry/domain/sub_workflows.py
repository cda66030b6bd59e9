"""Findings about sub-workflows: drafts, cycles, and too many levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from uuid import UUID

from services.registry.domain.constructs import SubWorkflow
from services.registry.domain.definition import ERROR, WARNING, Definition, Finding

DEPTH_MAX: Final = 8

Key: TypeAlias = tuple[UUID, int]


@dataclass(frozen=True, slots=True)
class Known:
    """A version of a workflow, and the workflows that it runs."""

    name: str
    is_active: bool
    runs: Sequence[Key]


def sub_workflow_findings(
    definition: Definition, workflow_id: UUID | None, known: Mapping[Key, Known]
) -> list[Finding]:
    """Check every place that runs a workflow, recursively; at most one cycle or depth error each.

    `workflow_id` is the id of the checked definition, if it is stored: no version of it may run
    within itself. Missing workflows are skipped here, since the check of the places reports them.
    """
    walk = _Walk(workflow_id, known)
    findings = []
    for index, node in enumerate(definition.nodes):
        key = (node.node_id, node.version)
        if not isinstance(node.construct, SubWorkflow) or key not in known:
            continue
        place = f"nodes[{index}]"
        found = known[key]
        if not found.is_active:
            message = f"the workflow {found.name} is a draft, and drafts are not run"
            hint = "call ActivateWorkflow of it first"
            findings.append(Finding(WARNING, place, "SUB_WORKFLOW_INACTIVE", message, hint))
        try:
            walk.down(key, ())
        except _ContainsItself as error:
            names = " → ".join(known[each].name for each in error.way)
            message = f"a run would contain itself: {names}"
            hint = "let the workflows share nodes, or use a loop"
            findings.append(Finding(ERROR, place, "SUB_WORKFLOW_CYCLE", message, hint))
        except _TooDeepError:
            message = f"{found.name} runs workflows within workflows, more than {DEPTH_MAX} deep"
            findings.append(Finding(ERROR, place, "SUB_WORKFLOW_TOO_DEEP", message))
    return findings


class _ContainsItself(Exception):  # noqa: N818 (a finding, told as one)
    def __init__(self, way: Sequence[Key]) -> None:
        super().__init__()
        self.way = way


class _TooDeepError(Exception):
    pass


@dataclass(slots=True)
class _Walk:
    """Depth-first traversal that visits every version once and is limited in depth."""

    workflow_id: UUID | None
    known: Mapping[Key, Known]
    levels: dict[Key, int] = field(default_factory=dict)

    def down(self, key: Key, above: tuple[Key, ...]) -> int:
        """Return the number of levels from here; `above` is the path to here."""
        way = (*above, key)
        if key[0] == self.workflow_id or key[0] in {each[0] for each in above}:
            raise _ContainsItself(way)
        if len(above) + self.levels.get(key, 1) > DEPTH_MAX:
            raise _TooDeepError
        if key not in self.levels:
            below = [self.down(each, way) for each in self.known[key].runs if each in self.known]
            self.levels[key] = 1 + max(below, default=0)
        return self.levels[key]
