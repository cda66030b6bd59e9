"""A node that runs alone: the definition that has nothing but it."""

from __future__ import annotations

from typing import Final

from services.orchestrator.domain.plan import Definition, NodeVersion

PLACE: Final = "node"


def definition_of(version: NodeVersion) -> Definition:
    """Give a definition whose inputs and outputs are the node's own.

    What is not given is not given to the node either, so its defaults hold.
    """
    names = [str(each["name"]) for each in version.input_types]
    return Definition(
        workflow_id=None,
        version=None,
        nodes=[{"id": PLACE, "node_id": version.node_id and str(version.node_id)}],
        connections=[
            {"source": "", "source_output": name, "target": PLACE, "target_input": name}
            for name in names
        ],
        settings={},
        input_types=[
            {"name": each["name"], "type": each["type"], "required": each["required"]}
            for each in version.input_types
        ],
        output_types=[
            {"name": each["name"], "node_id": PLACE, "output": each["name"], "type": each["type"]}
            for each in version.output_types
        ],
    )
