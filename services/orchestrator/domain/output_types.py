"""The output types of places, by name, in the order of the outputs in rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from qflow.types import Literal, Type

from services.orchestrator.domain.plan import Kind, NodeVersion, Plan, kind_of
from services.orchestrator.domain.signatures import Signature, as_seen, of_builtin, of_version


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a definition's places, of any kind."""

    versions: Mapping[str, NodeVersion]
    plans: Mapping[str, Plan]  # of its sub-workflows
    # Graphs repeat few nodes many times: the types of each version are decoded once.
    read: dict[UUID, Mapping[str, Type]] = field(default_factory=dict)

    def outputs_of(self, node: Mapping[str, Any]) -> dict[str, Type]:
        """Return the outputs of a place as edges see them: for a map, lists."""
        inner = Signature(inputs={}, required=(), outputs=self._standing(node))
        return dict(as_seen(inner, node.get("map")).outputs)

    def _standing(self, node: Mapping[str, Any]) -> Mapping[str, Type]:
        kind, name = kind_of(node), str(node["id"])
        match kind:
            case Kind.PYTHON:
                return self._of_version(self.versions[name])
            case Kind.WORKFLOW:
                return {each.name: each.type for each in self.plans[name].outputs}
            case Kind.CHOICE:
                return {"branch": _one_of(node["choice"])}
            case _:
                return of_builtin(node).outputs

    def _of_version(self, version: NodeVersion) -> Mapping[str, Type]:
        found = self.read.get(version.id)
        if found is None:
            found = self.read[version.id] = of_version(version).outputs
        return found


def _one_of(rule: Mapping[str, Any]) -> Type:
    """Return the output type of a choice: the names of its branches."""
    names = [str(each["name"]) for each in rule["branches"]]
    return Literal(tuple(dict.fromkeys((*names, str(rule.get("default") or "")))))
